"""What each setting of an agent means: said once, for the options of the command and for a file of settings.

Apart from :mod:`edge_sdk.settings`, so that ``--help`` loads nothing for it.
"""

ABOUT = {
    "device": "This device's name in the fleet: a-z, 0-9 and '-'.",
    "broker": "mqtt://host:port, or mqtts://host:port for TLS.",
    "data": "CSV, JSONL, Parquet or .npz file of examples, or folder of pictures; it never leaves the device.",
    "fleet": "The fleet's name.",
    "profile": "A name from device_profiles/ or a TOML file; default: measure.",
    "state_dir": "Where state lives; default: the platform's own folder.",
    "release_key": "The coordinator's release.pub; none: no releases.",
    "user": "User name for the broker.",
    "password_file": "File that holds the password for the broker.",
    "ca_file": "Certificate authorities for TLS, instead of the system's.",
    "allow_plaintext": "Allow mqtt:// to another machine.",
    "runtime": "What trains, onnx or torch; torch has to be installed.",
    "mixed_precision": "On torch, multiply in bfloat16, or in float16 where a GPU has no bfloat16.",
    "gradient_checkpointing": "On torch, keep fewer activations and compute them again.",
    "seed": "Of the held-out split and of the batches.",
    "held_out_share": "Share of the examples that is never trained on and measures each released model.",
    "ready_interval_s": "How often the device asks for work, in seconds.",
    "resend_first_s": "First pause before an update that nobody acknowledged is sent again, in seconds.",
    "resend_most_s": "Longest such pause, in seconds.",
    "image_size": "Pixels a side that pictures are kept with, at least the model's.",
    "cache_bytes": "Most disk for models to train and updates on their way; the running model is beside it.",
    "policy.charging_only": "Work on a charger only.",
    "policy.battery_floor_share": "Below this share of the battery the device does not work.",
    "policy.idle_only": "Work while others use at most a quarter of the processor only.",
    "policy.idle_cpu_share": "Above this share of all cores, used by others, the device is not idle.",
    "policy.quiet_hours": "Windows of local time in which nothing is done.",
    "policy.unmetered_only": "Work on links that are known to be unmetered only.",
    "policy.max_temperature_c": "Above this temperature the device does not work, in degrees Celsius.",
    "policy.min_disk_free_bytes": "With less free on the disk the device does not work.",
    "policy.daily_energy_wh": "Energy a day for training.",
    "policy.training_watts": "What the device draws while it trains; default: its profile's, else what is measured.",
    "policy.daily_mib": "Traffic a day, both ways together.",
}

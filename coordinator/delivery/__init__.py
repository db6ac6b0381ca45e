"""Models for inference, on their way to devices: signed, chosen per device, and reported on."""

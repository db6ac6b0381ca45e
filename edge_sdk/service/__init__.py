"""The agent as something that one installs on a board and forgets: a systemd service.

unit       the text of the unit, from a dataclass; pure
following  what its settings ask for, in a drop-in beside it
limits     memory and processor time for the unit, from a device profile; pure
systemd    systemctl and journalctl, and whether there is a systemd at all
install    puts a unit where systemd looks for it, and takes it away
notify     how a running agent tells systemd that it is ready and alive
debian/    the same as a .deb: `make deb`
"""

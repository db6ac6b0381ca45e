"""The agent as a systemd service: install it on a board and forget it.

unit       the text of the unit, from a dataclass; pure
following  directives that follow from the settings, in a drop-in beside the unit
limits     memory and processor time for the unit, from a device profile; pure
systemd    systemctl and journalctl, and whether the machine runs systemd
install    installs the unit, and removes it
notify     how a running agent tells systemd that it is ready and alive
debian/    the service as a .deb: `make deb`
"""

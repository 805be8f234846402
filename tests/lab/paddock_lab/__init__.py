"""Runs a command as root where real KVM is: on this machine, or inside an emulated Debian host. See `tests/lab/run --help`."""

"""Data: the scripts that run inside the guest; packed by `firmware_sim.boot.image`."""

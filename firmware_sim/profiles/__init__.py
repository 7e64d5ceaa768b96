"""Data: one TOML file per gateway profile; read by `firmware_sim.profile`."""

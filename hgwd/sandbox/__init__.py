"""The barriers around a delivered software. Used by the root launcher only, never imported into the daemon."""

"""The keys of a contract and of this device (design §6.4, §6.5).

The contract's secret opens backups. It is made once, on a device the owner holds, wrapped with the owner's passphrase
and printed on the recovery sheet; it is in memory only while that happens or while a restore runs. The device's own
keys let it write and sign, never read. Losing a device means a new contract key for new sessions: wrapping the old
key again revokes nothing that was already read.
"""

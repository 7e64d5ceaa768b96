"""The carrier side as contexts: lines, storage, ledger. Hosted by `deliver serve`, never a program of its own.

How a program hosts it (`compose.open_carrier` is the one constructor that sees engines):

    carrier = open_carrier(CarrierUrls(database="sqlite:///…", blobs="file:///…"), clock, signer)
    carrier.registry.add_line(…)                      # synchronous: CLI; in servers `await carrier.worker.run(…)`
    await carrier.start(nursery)                      # first read of the line map, then its refresh
    router = Router(); storage_routes(router, carrier.storage)
    line = carrier.directory.authenticate(request.peer.host)   # for other services: in memory, no await

`carrier.admin` has what operators do: contracts, codes, devices, usage, gc, scrub, rebuild_index.
`carrier.events` has contract events (X table) with all their effects in order.
"""

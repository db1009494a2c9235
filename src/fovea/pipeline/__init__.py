"""The one door: a prompt becomes an EngineRequest here (`preparer`), tokens become a RequestOutput (`collector`).

Neither knows torch. `Preparer` runs where it may take its time: in media threads, or in a server's worker processes.
`Collector` runs beside the step loop, or in a server's event loop.
"""

"""Faults that are put into a real server under load, with a simulated kubelet beside it: so many kinds, each with many seeds.

Every injection has a server of its own, with the models that come with Balm, and clients that ask them all the time and know
the right answers. What it does is decided by its kind and its seed, so that `BALM_INJECTION=kind:seed make injections` does it
again. Afterwards the server must be whole: ready, all lanes there, no incident open, a right answer from each model, nothing in
flight, and an orderly end.

- `scene.py`: one injection, from the start of its server to the verdict
- `by_signals.py`, `by_clients.py`, `by_files.py`, `by_surroundings.py`, `by_engine.py`: the kinds
- `campaign.py`: many of them, some at once; `report.py`: what came of it
"""

"""Runs graphs. A graph is declarative: no user code, so it runs on the loop of the process that owns the models.

Theory of operation. `executor.GraphExecutor` stands where workers stand for other models: behind a queue, which gives
it one request at a time, up to the graph's `concurrency`. It answers with a runner for the graph's level: `tensors`,
`bodies` (KServe) or `seldon`. A runner asks through `calling.Calls`: models of this server through the door, without
HTTP between; other endpoints through `remote.Remote`. Every step has the deadline of its request, or less if it says
so, and takes the caller's trace along; when the caller leaves, what was asked is cancelled.

No deadlock: a request holds its place in the graph while it waits for places in models, and never the other way
round; graphs that lead to each other in a circle are refused when they are loaded. A model's full queue fails no step:
the step waits for room until its deadline, first come, first served, and while many wait, the graph's own queue fills
and refuses.
"""

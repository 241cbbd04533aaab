"""Runs graphs of tensors: our own files, and Triton's ensembles."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from penstock.core.errors import DeadlineExceeded, InvalidInput, PenstockError, ServableError
from penstock.core.servable import Signature
from penstock.core.tensor import Array
from penstock.graphs.combine import combined
from penstock.graphs.definition import (
    DATAFLOW,
    ENSEMBLE,
    NODE,
    ROUTER,
    SEQUENCE,
    SPLITTER,
    SWITCH,
    Graph,
    Node,
    Step,
)
from penstock.runtime.graphs.bandits import Bandits
from penstock.runtime.graphs.calling import Calls
from penstock.runtime.graphs.journey import Journey

Values = Mapping[str, Array]


class TensorRunner:
    """Answers with what the root node adds to the request's tensors, or with those of it that the graph declares."""

    def __init__(self, graph: Graph, calls: Calls, bandits: Bandits) -> None:
        self._graph = graph
        self._calls = calls
        self._bandits = bandits
        self._outputs = tuple(spec.name for spec in graph.outputs)
        self._optional = frozenset(spec.name for spec in graph.inputs if spec.optional)

    async def answer(self, journey: Journey, inputs: Values) -> Mapping[str, Array]:
        """The graph's outputs. Raises: PenstockError that names the step."""
        added = await self._node(self._graph.nodes[self._graph.root], inputs, journey)
        if not self._outputs:
            return added
        missing = [name for name in self._outputs if name not in added and name not in inputs]
        if missing:
            raise ServableError(
                f"no step that ran gave the graph's output '{missing[0]}'; there are {', '.join(added) or 'none'}"
            )
        return {name: added[name] if name in added else inputs[name] for name in self._outputs}

    async def _node(self, node: Node, values: Values, journey: Journey) -> dict[str, Array]:
        """What the node adds to the values."""
        if node.kind == SEQUENCE:
            here, added = dict(values), {}
            for step in node.steps:
                if self._holds(step, here):
                    given = await self._step(step, here, journey)
                    here.update(given)
                    added.update(given)
            return added
        if node.kind == DATAFLOW:
            return await self._dataflow(node, values, journey)
        if node.kind == ENSEMBLE:
            return await self._ensemble(node, values, journey)
        return await self._step(self._chosen(node, values, journey), values, journey)

    def _chosen(self, node: Node, values: Values, journey: Journey) -> Step:
        if node.kind == SWITCH:
            for step in node.steps:
                if self._holds(step, values):
                    return step
            raise InvalidInput(f"node '{node.name}': none of its conditions holds, and there is no step without one")
        if node.kind == ROUTER:
            index = journey.routes[node.name] = self._bandits.choose(node)
        else:
            assert node.kind == SPLITTER
            index = self._bandits.draw(node)
        return node.steps[index]

    def _holds(self, step: Step, values: Values) -> bool:
        if step.when is None:
            return True
        try:
            return step.when.holds(values)
        except InvalidInput as error:
            raise InvalidInput(f"step '{step.name}': {error.message}") from None

    async def _step(self, step: Step, values: Values, journey: Journey) -> dict[str, Array]:
        """What the step adds; nothing when it is soft and failed."""
        try:
            if step.target.kind == NODE:
                node = self._graph.nodes[step.target.name]
                if step.timeout_s is None and not step.retries:
                    return await self._node(node, values, journey)  # the steps inside name themselves
                return await self._calls.step(journey, step, lambda j: self._within(node, values, j))
            given = await self._calls.step(journey, step, lambda j: self._ask(step, values, j))
        except PenstockError:
            if step.hard:
                raise
            return {}
        return given

    async def _within(self, node: Node, values: Values, journey: Journey) -> dict[str, Array]:
        """A node with less time than the request: its steps watch the clock, and so does this."""
        try:
            async with asyncio.timeout_at(_loop_time(journey.deadline)):
                return await self._node(node, values, journey)
        except TimeoutError:
            raise DeadlineExceeded("its time is over") from None

    async def _ask(self, step: Step, values: Values, journey: Journey) -> dict[str, Array]:
        signature = None if step.inputs else await self._calls.signature(journey, step.target)
        try:
            outputs = await self._calls.infer(journey, step.target, self._inputs(step, values, signature))
        except InvalidInput:
            self._calls.forget(step.target)
            raise
        if not step.outputs:
            return dict(outputs)
        for tensor in step.outputs:
            if tensor not in outputs:
                raise ServableError(f"it gave no output '{tensor}', only {', '.join(outputs) or 'none'}")
        return {value: outputs[tensor] for tensor, value in step.outputs.items()}

    def _inputs(self, step: Step, values: Values, signature: Signature | None) -> dict[str, Array]:
        if step.inputs:
            found = {}
            for tensor, value in step.inputs.items():
                if value in values:
                    found[tensor] = values[value]
                elif value not in self._optional:
                    raise ServableError(
                        f"its input '{tensor}' has no value '{value}'; there are {', '.join(values) or 'none'}"
                    )
            return found
        if signature is None or not signature.inputs:
            return dict(values)
        missing = [spec.name for spec in signature.inputs if not spec.optional and spec.name not in values]
        if missing:
            raise ServableError(f"its input '{missing[0]}' has no value; there are {', '.join(values) or 'none'}")
        return {spec.name: values[spec.name] for spec in signature.inputs if spec.name in values}

    async def _ensemble(self, node: Node, values: Values, journey: Journey) -> dict[str, Array]:
        given = await together([self._step(step, values, journey) for step in node.steps])
        answers = {step.name: each for step, each in zip(node.steps, given, strict=True) if each}
        if node.combiner is not None:
            wide = {f"{name}.{output}": array for name, each in answers.items() for output, array in each.items()}
            return await self._step(node.combiner, {**values, **wide}, journey)
        if node.combine:
            try:
                return combined(node.combine, list(answers.values()))
            except InvalidInput as error:
                raise ServableError(f"node '{node.name}': {error.message}") from None
        return {name: array for each in answers.values() for name, array in each.items()}

    async def _dataflow(self, node: Node, values: Values, journey: Journey) -> dict[str, Array]:
        """Every step as soon as its inputs are there."""
        here = dict(values)
        there = self._optional | here.keys()
        waiting = list(node.steps)
        running: dict[asyncio.Task[dict[str, Array]], Step] = {}
        try:
            while waiting or running:
                ready = [step for step in waiting if there.issuperset(step.inputs.values())]
                waiting = [step for step in waiting if step not in ready]
                if len(ready) == 1 and not running:
                    given = await self._step(ready[0], here, journey)
                    here.update(given)
                    there |= given.keys()
                    continue
                for step in ready:
                    running[asyncio.ensure_future(self._step(step, dict(here), journey))] = step
                if not running:
                    lacking = waiting[0]
                    raise ServableError(f"step '{lacking.name}' waits for tensors that nothing gave")
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    del running[task]
                    given = task.result()
                    here.update(given)
                    there |= given.keys()
        finally:
            await _end(list(running))
        return {name: array for name, array in here.items() if name not in values}


async def together(work: Sequence[Coroutine[Any, Any, dict[str, Array]]]) -> list[dict[str, Array]]:
    """What each gives, in order. The first failure ends the others.

    Raises:
        PenstockError: of those that failed at the same moment, the first one's in order.
    """
    if len(work) == 1:
        return [await work[0]]
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error
        return [task.result() for task in tasks]
    finally:
        await _end(tasks)


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if any(not task.done() for task in tasks):
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen: another failure was told


def _loop_time(deadline: float) -> float | None:
    """A moment of `time.monotonic()` on the loop's clock; None for infinity."""
    left_s = deadline - time.monotonic()
    return None if left_s > 1e9 else asyncio.get_running_loop().time() + left_s

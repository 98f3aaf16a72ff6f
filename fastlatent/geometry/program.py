"""A decoder as steps with known derivatives: faster than running the decoder itself."""

import torch
from torch import Tensor

from fastlatent.geometry import steps
from fastlatent.geometry.frozen import LatentFunction, standard_deviation
from fastlatent.geometry.lowering import lower
from fastlatent.geometry.rewriting import Graph, optimised
from fastlatent.geometry.steps import Step, flattened, in_memory_order, memory_order
from fastlatent.geometry.tape import Untraceable, record


class Program:
    """F(z) (n, D), or its parts in another order, with derivatives along tangents."""

    def __init__(self, graph: Graph):
        self._graph = graph
        self._outputs = graph.outputs
        self._unordered = [_before_rearranging(graph, output) for output in graph.outputs]
        sizes = {0: graph.latent_dim}
        sizes |= {step.output: torch.Size(step.shape).numel() for step in graph.steps}
        # Of one step, with all it reads, and the outputs that wait.
        waiting = sum(sizes[i] for i in self._outputs)
        reads = (sizes[s.output] + sum(sizes[i] for i in s.inputs) for s in graph.steps)
        self.floats = waiting + max(reads, default=0)
        views = (steps.Reshape, steps.Phases, steps.Rearrangement)
        # Numbers of one point that a backward pass may need.
        self.stored = sum(sizes[s.output] for s in graph.steps if not isinstance(s, views))

    def value(self, z: Tensor) -> Tensor:
        """F(z): (n, d) -> (n, D)."""
        plan = self._plan(self._outputs)
        held = {0: z}
        for step, dropped in plan:
            held[step.output] = step.value(*(held[i] for i in step.inputs))
            for register in dropped:
                del held[register]
        return _side_by_side([flattened(held[i]) for i in self._outputs])

    def push(
        self,
        z: Tensor,  # (n, d)
        tangents: Tensor,  # (n, k, d), or (1, k, d): the same at all points
        ordered: bool = True,  # False: the D elements may come in another order
    ) -> tuple[Tensor, Tensor]:  # (n, D), (n, k, D)
        """F(z) and J(z) times each tangent."""
        outputs = self._outputs if ordered else self._unordered
        held: dict[int, tuple[Tensor, Tensor | None]] = {0: (z, tangents)}
        for step, dropped in self._plan(outputs):
            x, dx = zip(*(held[i] for i in step.inputs), strict=True)
            if all(part is None for part in dx):
                held[step.output] = step.value(*x), None
            else:
                held[step.output] = step.push(x, dx)
            for register in dropped:
                del held[register]
        n = len(z)
        ys, dys = [], []
        for i in outputs:
            y, dy = held[i]
            assert dy is not None
            dy = dy.expand(n, *dy.shape[1:])
            if ordered:
                ys.append(flattened(y))
                dys.append(flattened(dy, 2))
            else:
                order = memory_order(y)
                ys.append(in_memory_order(y, order))
                dys.append(in_memory_order(dy, order, 2))
        return _side_by_side(ys), _side_by_side(dys)

    def _plan(self, outputs: list[int]) -> list[tuple[Step, list[int]]]:
        """The steps that the outputs need, each with the registers nobody reads after it."""
        wanted, plan = set(outputs), []
        last = set(outputs)
        for step in reversed(self._graph.steps):
            if step.output in wanted:
                dropped = [i for i in dict.fromkeys(step.inputs) if i not in last]
                last.update(dropped)
                wanted.update(step.inputs)
                plan.append((step, dropped))
        return plan[::-1]


def _side_by_side(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _before_rearranging(graph: Graph, register: int) -> int:
    """The register that holds the same elements in another order."""
    made = {step.output: step for step in graph.steps}
    while register in made:
        step = made[register]
        whole = isinstance(step, steps.Interleave) and (
            torch.Size(step.shape).numel() == torch.Size(graph.shape(step.inputs[0])).numel()
        )
        if not (whole or isinstance(step, steps.Reshape | steps.Phases | steps.Rearrangement)):
            break
        register = step.inputs[0]
    return register


def analyse(function: LatentFunction, z: Tensor, stochastic: bool) -> Program:
    """The decoder's steps, found by running it near the first of the latents z (n, d).

    Raises Untraceable.
    """
    d = z.shape[1]
    n = 5 if d != 5 else 7  # unlike other sizes, so that the dimension of the latents is known
    spread = 1 + 0.01 * torch.arange(n, dtype=z.dtype, device=z.device)
    tape = record(function, spread[:, None] * z[:1])
    outputs = [output for output in tape.outputs if output is not None]
    if len(outputs) != 1 + stochastic or not all(tape.smooth[i] for i in outputs):
        raise Untraceable("the outputs are not what they seemed to be")
    lowered = lower(tape, n)
    if stochastic:
        shape = tape.shapes[outputs[1]][1:]
        register = len(tape.shapes)
        lowered.append(steps.Deviation((outputs[1],), register, shape, standard_deviation))
        outputs[1] = register
    return Program(optimised(Graph(lowered, outputs, d), z.dtype, z.device))

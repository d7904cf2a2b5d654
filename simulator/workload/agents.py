"""Agents: tasks in closed loops of model calls, tool calls and replies of users, whose prompts grow; some fork.

A task is ``turns`` turns of a user (mean, geometric) with ``think`` between them (mean). A turn is ``steps`` calls of
the model (mean, geometric), each ``tool`` (mean) after the end of the one before it. Every prompt holds all that came
before it: a system prompt of ``system`` tokens that all tasks share, texts of the user and of tools (drawn as prompts)
and replies of the model (drawn as outputs). After a share ``fork`` of its steps an agent starts ``branches`` others.
They begin with the whole context of it, take steps of their own at the same time, and their last replies become its
next input, once all of them have ended. They do not fork themselves.

Pauses are log-normal with the spread of AIPerf's coding agents (mean 2.5 s, median 1.8 s of tools; 40 s and 25 s of
users). Prefix hashes name the shared beginnings, so caches and policies that read them see what an agent re-uses.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import log, sqrt
from random import Random
from typing import Final

from simulator.traces import TraceEntry
from simulator.workload.arrivals import Arrival, Shaper
from simulator.workload.lengths import Lengths, about
from simulator.workload.loops import UNIT_TOKENS
from simulator.workload.recipe import Recipe

_TOOL_SIGMA: Final = sqrt(2 * log(2.5 / 1.8))
_THINK_SIGMA: Final = sqrt(2 * log(40 / 25))
_MS: Final = 1_000  # pauses are drawn in milliseconds


@dataclass(slots=True, eq=False)
class Agent:
    """One loop: its context so far, the steps and turns left, and the agent that waits for it."""

    name: str  # the session id
    number: int  # from 1: its part of the prefix hashes
    turns: int
    steps: int
    tokens: int
    units: tuple[int, ...]
    parent: "Agent | None" = None
    branches_open: int = 0
    handed: int = 0  # tokens of the branches' last replies
    output: int = 0  # tokens of its own last one


@dataclass
class Agents:
    """Tasks that begin at a rate; everything later follows from an end."""

    recipe: Recipe
    lengths: Lengths
    shaper: Shaper
    draw: Random
    pending: int = 0
    paced: bool = True
    _sent: int = 0
    _numbers: int = 0
    _agents: dict[str, Agent] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.recipe.requests

    def __iter__(self) -> Iterator[Arrival]:
        at_s, shared = 0.0, tuple(range(self.recipe.system // UNIT_TOKENS))
        while self._sent < self.recipe.requests:
            at_s += self.draw.expovariate(self.recipe.rate)
            task = self._agent(f"a{self._numbers + 1}", self._geometric(self.recipe.turns), self.recipe.system, shared)
            yield self._call(task, at_s, self.lengths()[0])

    def after(self, arrival: Arrival, ended_s: float) -> list[Arrival]:
        """What the agent does next: another step, branches, or a reply that its user or its parent goes on from."""
        agent = self._agents[arrival.request.session]
        if agent.steps > 0:
            if agent.parent is None and self.draw.random() < self.recipe.fork:
                return self._fork(agent, ended_s)
            return self._later(agent, ended_s + self._pause(self.recipe.tool, _TOOL_SIGMA), self.lengths()[0])
        if agent.parent is not None:
            return self._joined(agent, agent.parent, ended_s)
        if agent.turns > 0:
            agent.turns -= 1
            agent.steps = self._geometric(self.recipe.steps)
            return self._later(agent, ended_s + self._pause(self.recipe.think, _THINK_SIGMA), self.lengths()[0])
        return []

    # ---- what follows -------------------------------------------------------------

    def _fork(self, agent: Agent, now_s: float) -> list[Arrival]:
        """Its branches begin at once, each with a task of its own after the common beginning."""
        calls: list[Arrival] = []
        for number in range(self.recipe.branches):
            branch = self._agent(f"{agent.name}/{self._numbers + 1}-{number}", 1, agent.tokens, agent.units, agent)
            calls += self._later(branch, now_s, self.lengths()[0])
        agent.branches_open = len(calls)
        return calls

    def _joined(self, branch: Agent, parent: Agent, now_s: float) -> list[Arrival]:
        """Its last reply goes to its parent, which goes on with those of all branches."""
        del self._agents[branch.name]
        parent.branches_open -= 1
        parent.handed += branch.output
        if parent.branches_open:
            return []
        handed, parent.handed = parent.handed, 0
        return self._later(parent, now_s, handed)

    def _later(self, agent: Agent, at_s: float, added: int) -> list[Arrival]:
        if self._sent >= self.recipe.requests:
            return []
        self.pending += 1
        return [self._call(agent, at_s, added)]

    def _call(self, agent: Agent, at_s: float, added: int) -> Arrival:
        """The agent's next request: all so far and *added* tokens."""
        self._sent += 1
        agent.steps -= 1
        agent.output = self.lengths()[1]
        prompt = agent.tokens + added
        agent.tokens = prompt + agent.output
        own = agent.number << 32
        agent.units += tuple(own + n for n in range(len(agent.units), agent.tokens // UNIT_TOKENS))
        entry = TraceEntry(
            at_s,
            prompt,
            agent.output,
            session=agent.name,
            prefix=agent.units[: prompt // UNIT_TOKENS],
            prefix_block_tokens=UNIT_TOKENS,
        )
        return self.shaper.arrival(entry, at_s, agent.units)

    # ---- draws --------------------------------------------------------------------

    def _agent(self, name: str, turns: int, tokens: int, units: tuple[int, ...], parent: Agent | None = None) -> Agent:
        self._numbers += 1
        steps = self._geometric(self.recipe.steps)
        agent = Agent(name, self._numbers, turns - 1, steps, tokens, units, parent)
        self._agents[name] = agent
        return agent

    def _geometric(self, mean: float) -> int:
        count, more = 1, 1 - 1 / mean
        while self.draw.random() < more:
            count += 1
        return count

    def _pause(self, mean_s: float, sigma: float) -> float:
        return about(mean_s * _MS, sigma).draw(self.draw) / _MS if mean_s else 0.0

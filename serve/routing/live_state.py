"""Live state: one variant's load and health as this gateway knows them."""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from serve.routing.prediction import Load
from serve.routing.replica_state import ReplicaState

_NONE: Mapping[str, int] = {}
_MAX_READ = 1000  # prompts between two messages to other gateways
_SMOOTHING = 0.05  # weight of the newest request in the usual lengths


@dataclass(slots=True)
class LiveState:
    """One variant's load and health as this gateway knows them.

    Mutable: the gateway counts its own requests, and a background task refreshes the rest from the engines' metrics.
    """

    replicas: int = 0
    ejected: int = 0  # replicas that run and get no requests, at the last refresh; not in `replicas`
    been_up: bool = False  # whether a replica has run since this gateway started
    silent: bool = False  # whether all replicas have been silent for longer than predicted
    running: int = 0  # running in the engines, at the last refresh
    waiting: int = 0  # queued in the engines, at the last refresh
    kv_usage: float = 0.0  # share of the KV cache in use, of the replica that uses most
    in_flight: int = 0  # sequences of this gateway's requests, now
    pending_prefill_tokens: int = 0  # prompt tokens of this gateway's requests that have no first token yet
    remote_in_flight: int = 0  # sequences of other gateways, at the last refresh
    dispatched_since_refresh: int = 0  # sequences of this gateway's requests
    peers: int = 0  # other gateways that route to the same variants
    usual_prompt: float = 0.0  # prompt tokens to be read and tokens to be generated of a request, moving averages
    usual_output: float = 0.0
    kv_tokens: int = 0  # capacity of one replica's prefix cache; 0 without one
    hardware: frozenset[str] = frozenset()  # ids of what its replicas compute on; empty where it is not known
    _step_s: float = 0.0  # between streamed tokens since the last refresh, added up
    _steps: float = 0.0
    _steps_at: float = 0.0  # sequences in flight at a replica at each of those tokens, added up
    by_replica: dict[str, ReplicaState] = field(default_factory=dict)  # by base URL, at the last refresh
    _read_prefixes: deque[tuple[str, Sequence[int]]] = field(default_factory=lambda: deque(maxlen=_MAX_READ))
    _load: Load = field(default=Load(), compare=False, repr=False)  # the last one computed
    _load_inputs: tuple[object, ...] = field(default=(), compare=False, repr=False)  # what it was computed from

    def load(self, colocated: float = 0, only: str = "", cached_tokens: int = 0) -> Load:
        """The load of all replicas now, while `colocated` other variants on their hardware are busy.

        Where there is one replica, it may be given as `only`, with the tokens of a prompt that it has cached.
        This gateway's requests are counted exactly. Those of other gateways are as old as the last refresh; since then each
        gateway is assumed to have dispatched as many as this one, so that they do not all choose the variant that was idle.
        """
        inputs = (
            self.in_flight, self.pending_prefill_tokens, self.remote_in_flight, self.dispatched_since_refresh, self.peers,
            self.usual_prompt, self.usual_output, self.replicas, colocated, only,
        )  # fmt: skip
        if inputs != self._load_inputs:
            self._load_inputs, self._load = inputs, self._compute_load(colocated, only)
        return Load(*self._load[:-1], cached_tokens) if cached_tokens else self._load

    def _compute_load(self, colocated: float, only: str) -> Load:
        remote = self.remote_in_flight + self.dispatched_since_refresh * self.peers
        pending_tokens = self.pending_prefill_tokens
        if remote and self.in_flight:  # the others' prompts are not known: as this gateway's
            pending_tokens = round(pending_tokens * (1 + remote / self.in_flight))
        requests = self.in_flight + remote
        ratio = self.usual_prompt / self.usual_output if self.usual_output else 0.0
        if only:
            return Load(requests, pending_tokens, 1, colocated, ratio, only, requests, pending_tokens)
        return Load(requests, pending_tokens, self.replicas, colocated, ratio)

    def remember_prefix(self, blocks: Sequence[int], replica: str) -> None:
        """Add a prompt of `blocks` that this gateway had read to the estimated contents of the replica's prefix cache."""
        self.learn_prefix(blocks, replica)
        if self.peers and blocks and replica:
            self._read_prefixes.append((replica, blocks))

    def learn_prefix(self, blocks: Sequence[int], replica: str) -> None:
        """The same for a prompt that any gateway had read."""
        if (state := self.by_replica.get(replica)) is not None:
            state.remember_prefix(blocks, self.kv_tokens)

    def take_read_prefixes(self) -> list[tuple[str, Sequence[int]]]:
        """Replica and blocks of the prompts that this gateway had read since the last call, the newest of them."""
        found = list(self._read_prefixes)
        self._read_prefixes.clear()
        return found

    @property
    def busy(self) -> bool:
        """Whether any request is in flight at the variant, as of the last refresh."""
        return self.in_flight + self.remote_in_flight > 0

    def update_from_engines(
        self,
        replicas: int,
        running: int,
        waiting: int,
        kv_usage: float,
        kv_tokens: int | None = None,
        in_flight_before: int = 0,
    ) -> None:
        """Store what the engines report; what was in flight when they were asked and has ended is not another gateway's."""
        if kv_tokens is not None:
            self.kv_tokens = kv_tokens
        self.update_without_answer(replicas)
        self.running, self.waiting, self.kv_usage = running, waiting, kv_usage
        self.remote_in_flight = max(0, running + waiting - max(self.in_flight, in_flight_before))

    def update_without_answer(self, replicas: int) -> None:
        """Store how many replicas run where no engine reported its load in time: what was known of it stays.

        That includes what other gateways had: the difference of an old total and what this one has now is not theirs.
        """
        self.replicas = replicas
        self.been_up = self.been_up or replicas > 0
        self.dispatched_since_refresh = 0

    @property
    def in_flight_by_replica(self) -> dict[str, int]:
        """Sequences of this gateway's requests at each replica, now."""
        return {name: state.in_flight for name, state in self.by_replica.items()}

    def update_replicas(
        self,
        sequences: Mapping[str, int | None],
        in_flight_before: Mapping[str, int] = _NONE,
        vouched: Collection[str] = (),
    ) -> None:
        """Store the sequences at each replica that runs, by base URL; None where its metrics do not answer.

        A replica that stopped has lost its cache. `in_flight_before`: as of `update_from_engines`. `vouched`: replicas whose
        engine answers all the same.
        """
        known = self.by_replica
        self.by_replica = {name: known.get(name) or ReplicaState() for name in sequences}
        for name, state in self.by_replica.items():
            state.dispatched_since_refresh = 0
            state.answers = (count := sequences[name]) is not None or name in vouched
            if count is not None:
                state.remote_in_flight = max(0, count - max(state.in_flight, in_flight_before.get(name, 0)))

    def on_unreachable(self, replica: str) -> None:
        """Choose other replicas than this one until its engine answers again."""
        if (state := self.by_replica.get(replica)) is not None:
            state.answers = False

    def on_ejected(self, replica: str) -> None:
        """Count a replica that gets no more requests as ejected, until a refresh finds it again."""
        if self.by_replica.pop(replica, None) is not None:
            self.replicas, self.ejected = max(0, self.replicas - 1), self.ejected + 1

    def on_silence(self, silent: Collection[str]) -> None:
        """Note the replicas (base URLs) that have been silent for longer than predicted: others are chosen where there are."""
        for name, state in self.by_replica.items():
            state.silent = name in silent
        self.silent = bool(self.by_replica) and all(state.silent for state in self.by_replica.values())

    def take_place(self, sequences: int, replica: str = "") -> None:
        """Count a request that was admitted as in flight, until it is dispatched."""
        self.in_flight += sequences
        if (state := self.by_replica.get(replica)) is not None:
            state.in_flight += sequences

    def on_dispatch(self, prompt_tokens: int, sequences: int = 1, output_tokens: int = 0, replica: str = "") -> None:
        """Count a request dispatched to the variant; like the engine, each of its sequences. `output_tokens` are expected of all."""
        self.take_place(sequences, replica)
        self.dispatched_since_refresh += sequences
        self.pending_prefill_tokens += prompt_tokens
        if (state := self.by_replica.get(replica)) is not None:
            state.dispatched_since_refresh += sequences
            state.pending_prefill_tokens += prompt_tokens
        if output_tokens:
            smoothing = _SMOOTHING if self.usual_output else 1.0
            self.usual_prompt += smoothing * (prompt_tokens - self.usual_prompt)
            self.usual_output += smoothing * (output_tokens - self.usual_output)

    def on_tokens(self, tokens: float, seconds: float) -> None:
        """Count `tokens` more of each sequence of a streamed answer, `seconds` after those before."""
        self._step_s += seconds
        self._steps += tokens
        self._steps_at += tokens * (self.in_flight + self.remote_in_flight) / (self.replicas or 1)

    def take_steps(self) -> tuple[float, float, float]:
        """Since the last call: mean time per streamed token, ms, number of tokens, mean sequences in flight at a replica then."""
        steps, seconds, at = self._steps, self._step_s, self._steps_at
        self._step_s = self._steps = self._steps_at = 0.0
        return (seconds * 1000 / steps, steps, at / steps) if steps > 0 else (0.0, 0.0, 0.0)

    def on_first_token(self, prompt_tokens: int, replica: str = "") -> None:
        """Count a prompt as prefilled: its first token arrived, or the request ended before."""
        self.pending_prefill_tokens -= prompt_tokens
        if (state := self.by_replica.get(replica)) is not None:
            state.pending_prefill_tokens = max(0, state.pending_prefill_tokens - prompt_tokens)

    def on_complete(self, sequences: int = 1, replica: str = "") -> None:
        """Count a request as no longer in flight, however it ended."""
        self.in_flight -= sequences
        if (state := self.by_replica.get(replica)) is not None:
            state.in_flight = max(0, state.in_flight - sequences)  # it may have restarted at the same address

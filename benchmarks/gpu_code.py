"""Read the machine code of a GPU: its instructions, its loops, and how often each instruction runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final, NamedTuple

# The kind of an instruction is that of the first pattern that its mnemonic matches.
NVIDIA_KINDS: Final = (
    ("exponential", r"MUFU\.EX2"),
    ("special", r"MUFU|I2F\b|I2F\.|F2I|F2F|FRND|POPC|FLO"),
    ("packed float32", r"F(ADD|MUL|FMA)2"),
    ("float32", r"F(ADD|MUL|FMA)|HADD2\.F32|HFMA2"),
    ("product", r"IMAD|IMUL"),
    ("load", r"LDG|LD\b|LD\."),
    ("store", r"STG|ST\b|ST\."),
    ("local", r"LDL|STL"),
    ("shared", r"LDS|STS|SHFL|ATOMS|LDSM|STSM"),
    ("scalar", r"U[A-Z]|R2UR|S2UR|S2R|LDC|LDCU|CS2R"),
    ("control", r"BRA|EXIT|NOP|BSSY|BSYNC|BAR|WARPSYNC|DEPBAR|RET|CALL|YIELD|BREAK|BMOV|ERRBAR|MEMBAR|ACQBULK"),
    ("alu", r""),
)
AMD_KINDS: Final = (
    ("exponential", r"v_s?_?exp_"),
    ("special", r"v_(log|rcp|sqrt|rsq|sin|cos)_"),
    ("packed float32", r"v_pk_(add|mul|fma)_f32"),
    (
        "float32",
        r"v_(dual_)?(add|sub|subrev|mul|fma|fmac|mac|mad|fmaak|fmamk)_(legacy_)?(mix_)?f32|v_fma_mix|v_mad_mix",
    ),
    ("product", r"v_(mul_lo_u32|mul_hi|mad_u64|mad_i64)"),
    ("load", r"(global|buffer|flat)_load"),
    ("store", r"(global|buffer|flat)_store"),
    ("local", r"scratch_"),
    ("shared", r"ds_"),
    ("control", r"s_(cbranch|branch|endpgm|nop|waitcnt|wait_|barrier|delay|clause|setprio|sleep|code_end|set_inst)"),
    ("scalar", r"s_"),
    ("alu", r""),
)
WIDTHS: Final = (  # bytes per lane, by the mnemonic of a load or store
    (r".*(\.128|x4\b|_b128)", 16), (r".*(x3\b|_b96)", 12), (r".*(\.64|x2\b|_b64)", 8),
    (r".*(\.U16|\.S16|\.16\b|_ushort|_sshort|_short|_u16|_i16|_b16|_d16)", 2),
    (r".*(\.U8|\.S8|_ubyte|_sbyte|_byte|_u8|_i8|_b8)", 1), (r"", 4),
)  # fmt: skip

SASS: Final = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:\{\s*)?(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
AMD: Final = re.compile(r"^(?:([.\w$]+):|\s+([a-z]\w+)\s*([^;]*))")


class Instruction(NamedTuple):
    """One instruction: its mnemonic, its kind, and what may follow it."""

    name: str
    kind: str
    target: int | None = None  # index of the instruction that it branches to
    falls: bool = True  # whether the next instruction may follow


class Loop(NamedTuple):
    """A loop in the source of a kernel: its number of trips, and the loops inside."""

    trips: int
    inner: tuple[Loop, ...] = ()


@dataclass(frozen=True)
class Counts:
    """The number of instructions of each kind that a thread runs, and the bytes that its loads and stores move."""

    kinds: Counter[str] = field(default_factory=Counter)
    loaded: float = 0.0
    stored: float = 0.0

    def over(self, outputs: float) -> Counts:
        """Return the counts per output, for a thread with so many outputs."""
        kinds = Counter({kind: times / outputs for kind, times in self.kinds.items()})
        return Counts(kinds, self.loaded / outputs, self.stored / outputs)

    @property
    def total(self) -> float:
        """Number of instructions of all kinds."""
        return sum(self.kinds.values())


def parse(assembly: str, amd: bool) -> list[Instruction]:
    """Parse the instructions of the first function in SASS or AMD's assembly.

    Raises:
        ValueError: the function has an indirect branch.
    """
    lines = list(_amd_lines(assembly) if amd else _sass_lines(assembly))
    places: dict[str, int] = {}
    place = 0
    for label, name, _, _ in lines:
        if label:
            places.setdefault(label, place)
        place += bool(name)
    found = []
    for _, name, operands, conditional in lines:
        if not name:
            continue
        if re.match(r"BRX|JMX|CALL\.ABS|s_setpc|s_swappc|s_call", name):
            raise ValueError(f"{name} branches to a target that the code does not name")
        branch, end = re.match(r"BRA|CALL|s_branch|s_cbranch", name), re.match(r"EXIT|RET|s_endpgm", name)
        target = places.get(operands.replace("`(", " ").replace(")", " ").split()[-1]) if branch else None
        falls = conditional or name.startswith("s_cbranch") if branch or end else True
        found.append(Instruction(name, _kind(name, amd), target, falls))
    return _without_subroutines(found)


def _without_subroutines(code: list[Instruction]) -> list[Instruction]:
    """Remove calls to subroutines that return: they are the slow path of a division and hardly ever taken.

    Calls that do not return are kept as branches, since ptxas writes some branches as calls.
    """
    following = [[place + 1] if (one.falls or "CALL" in one.name) and place + 1 < len(code) else []
                 for place, one in enumerate(code)]  # fmt: skip
    for place, one in enumerate(code):
        if one.target is not None and "CALL" not in one.name:
            following[place].append(one.target)
    returns = {place for place, one in enumerate(code) if one.name.startswith("RET")}
    return [
        one._replace(target=None, falls=True)
        if one.target is not None and "CALL" in one.name and _spread([one.target], following, frozenset()) & returns
        else one
        for one in code
    ]


def _sass_lines(assembly: str) -> Iterator[tuple[str, str, str, bool]]:
    for line in assembly.partition("Function : ")[2].partition("Function : ")[0].splitlines():
        match = SASS.match(line)
        if match:
            address, guard, name, operands = match.groups()
            # The condition of a branch may also be among the operands.
            conditional = guard is not None or bool(re.search(r"\bU?P\d", operands)) or name.startswith("BRA.DIV")
            yield f"0x{int(address, 16):x}", name, operands, conditional


def _amd_lines(assembly: str) -> Iterator[tuple[str, str, str, bool]]:
    for line in assembly.splitlines():
        match = AMD.match(line)
        if line.startswith(".Lfunc_end"):
            return
        if match is None:
            continue
        label, name, operands = match.groups()
        # RDNA issues a pair of operations together.
        for part in f"{name} {operands}".split("::") if name else [""]:
            first, _, rest = part.strip().partition(" ")
            yield label or "", first, rest, False


def _kind(name: str, amd: bool) -> str:
    return next(kind for kind, pattern in (AMD_KINDS if amd else NVIDIA_KINDS) if re.match(pattern, name))


def width(name: str) -> int:
    """Return the number of bytes that a load or store moves per lane."""
    return next(size for pattern, size in WIDTHS if re.match(pattern, name))


class Graph:
    """The control flow of a function: which instructions follow which, and its natural loops."""

    def __init__(self, code: Sequence[Instruction]) -> None:
        self.code = code
        self.successors: list[list[int]] = []
        for place, instruction in enumerate(code):
            following = [place + 1] if instruction.falls and place + 1 < len(code) else []
            self.successors.append(following + ([] if instruction.target is None else [instruction.target]))
        self.predecessors: list[list[int]] = [[] for _ in code]
        for place, following in enumerate(self.successors):
            for successor in following:
                self.predecessors[successor].append(place)

    def reached(self, removed: frozenset[int] = frozenset()) -> set[int]:
        """Return the instructions on a path from the start to an end that avoids the removed instructions."""
        ends = [place for place, following in enumerate(self.successors) if not following]
        ahead = _spread([0], self.successors, removed)
        return ahead & _spread([end for end in ends if end in ahead], self.predecessors, removed)

    def loops(self) -> dict[int, set[int]]:
        """Find the natural loops; return the instructions of each by its first one."""
        reached = self.reached()
        found: dict[int, set[int]] = {}
        for place in sorted(reached):
            for header in self.successors[place]:
                # A back edge: every path to the branch passes through its target.
                if header <= place and place not in _spread([0], self.successors, frozenset({header})):
                    body = _spread([place], self.predecessors, frozenset({header})) | {header}
                    found[header] = found.get(header, set()) | (body & reached)
        return found


def _spread(starts: Sequence[int], edges: Sequence[Sequence[int]], removed: frozenset[int]) -> set[int]:
    found, todo = set(), [start for start in starts if start not in removed]
    while todo:
        place = todo.pop()
        if place not in found:
            found.add(place)
            todo += [following for following in edges[place] if following not in removed]
    return found


def count(code: Sequence[Instruction], trips: dict[int, int] | None = None) -> Counts:
    """Count the instructions that run, given the trips of each loop by the index of its first instruction.

    Other loops run once. Instructions that are reached only through a loop of 0 trips do not run.
    """
    graph, trips = Graph(code), trips or {}
    reached = graph.reached(frozenset(header for header, times in trips.items() if times == 0))
    weights = dict.fromkeys(reached, 1)
    for header, body in graph.loops().items():
        for place in body & reached:
            weights[place] *= trips.get(header, 1)
    kinds: Counter[str] = Counter()
    loaded = stored = 0
    for place, times in weights.items():
        instruction = code[place]
        kinds[instruction.kind] += times
        loaded += times * width(instruction.name) * (instruction.kind == "load")
        stored += times * width(instruction.name) * (instruction.kind == "store")
    return Counts(kinds, loaded, stored)


def resolve(code: Sequence[Instruction], source: Sequence[Loop], fewer: bool = False) -> list[dict[int, int]]:
    """Return every way to assign the trips of the source's loops to the loops of the code.

    Loops keep the order and nesting of the source, but the compiler may have unrolled some completely.

    Args:
        code: instructions of a function.
        source: loops of its source, outermost first.
        fewer: whether the compiler may also have peeled some trips off a loop.
    """
    bodies = Graph(code).loops()

    def within(outer: set[int] | None) -> list[int]:
        """Return the headers of the loops directly inside a loop."""
        inside = [header for header in bodies if outer is None or (header in outer and bodies[header] < outer)]
        return sorted(h for h in inside if not any(bodies[h] < bodies[other] for other in inside))

    def ways(headers: list[int], loops: Sequence[Loop]) -> Iterator[dict[int, int]]:
        for chosen in combinations(loops, len(headers)):
            partial: list[dict[int, int]] = [{}]
            for header, loop in zip(headers, chosen, strict=True):
                inner = list(ways(within(bodies[header]), loop.inner))
                trips = range(1, loop.trips + 1) if fewer and loop.trips else (loop.trips,)
                partial = [known | {header: each} | more for known in partial for each in trips for more in inner]
            yield from partial

    return list(ways(within(None), source))

"""Knowledge of how programs read an adapter: completely, in part, not at all, or differently.

The facts are those of `dialects.programs`; untested combinations of family, dialect and kind get no
claim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field

from loramerge.adapter.adapter import Adapter
from loramerge.adapter.delta import Delta
from loramerge.adapter.networks import as_written
from loramerge.adapter.site import Site
from loramerge.dialects import DIALECTS, Dialect
from loramerge.dialects.keys import any_names_an_adapter
from loramerge.dialects.programs import READERS, Program
from loramerge.errors import listed
from loramerge.records import NamedTuple, record

__all__ = ["Reading", "form_of", "reading", "readings"]


_ONE_ALPHA = "one alpha is taken for all modules of a component"
_ALPHAS = "alphas beside factors"
_NO_ALPHAS = f"{_ALPHAS} are left out"


@record
class Reading:
    """The things that one program makes of an adapter.

    Args:
        unread: modules it leaves out.
        otherwise: what it computes differently → the modules.
        refused: why it refuses the whole file; empty if it does not.
    """

    program: Program
    unread: tuple[str, ...] = ()
    otherwise: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    refused: str = ""

    @property
    def whole(self) -> bool:
        """True if it reads every module correctly."""
        return not (self.unread or self.otherwise or self.refused)

    @property
    def mistakes_kinds(self) -> bool:
        """True if it computes a kind of modules otherwise, which ordinary LoRA would not be."""
        return bool(self.otherwise.keys() - {_ONE_ALPHA, _NO_ALPHAS})

    def words(self, modules: int) -> str:
        """Return a short description of the problems; empty if there are none.

        Args:
            modules: how many the adapter has.
        """
        if self.refused:
            return f"refuses the file: {self.refused}"
        parts = [f"{what} ({len(names)} modules)" for what, names in self.otherwise.items()]
        if self.unread:
            parts.insert(0, f"leaves {len(self.unread)} of {modules} modules out")
        return "; ".join(parts)


class _Alike(NamedTuple):
    """Modules of one form that are spelled alike: most programs treat them alike."""

    form: str
    spelled: frozenset[str]
    sites: tuple[Site, ...]
    names: frozenset[str]


def readings(adapter: Adapter, target: Dialect | None = None) -> Iterator[Reading]:
    """Yield the reading of an adapter by each program that was tested with adapters of this sort.

    Args:
        target: the dialect it is written in; None for those its file spells it in.
    """
    adapter = _in_its_words(adapter, target)
    groups = _alike(adapter, target)
    info = adapter.info
    if target is None and (
        info.translated
        or info.aside
        or any_names_an_adapter([key for _, key in info.spelling.values()])
    ):
        return
    scaled = _stating_alphas(adapter) if target is None else frozenset[Site]()
    for program in READERS.known():
        found = _reading(adapter, program, target, groups, scaled)
        if found is not None:
            yield found


def reading(adapter: Adapter, program: Program, target: Dialect | None = None) -> Reading | None:
    """Return the reading of an adapter by a program, None if it was not tested with this sort."""
    adapter = _in_its_words(adapter, target)
    scaled = _stating_alphas(adapter) if target is None else frozenset[Site]()
    return _reading(adapter, program, target, _alike(adapter, target), scaled)


def _in_its_words(adapter: Adapter, target: Dialect | None) -> Adapter:
    """Return an adapter by the names that its file says, to which programs hold."""
    name = adapter.info.dialect
    spoken = DIALECTS[name] if target is None and name is not None else target
    return adapter if spoken is None else as_written(adapter, spoken)[0]


def _alike(adapter: Adapter, target: Dialect | None) -> list[_Alike]:
    written = None if target is None else frozenset({target.name})
    found: dict[tuple[str, frozenset[str]], list[Site]] = {}
    for site, delta in adapter.deltas.items():
        spelled = written or frozenset(adapter.info.spelled.get(site, ()))
        found.setdefault((form_of(adapter, site, delta), spelled), []).append(site)
    return [
        _Alike(*key, tuple(sites), frozenset(name for site in sites for name in site.modules))
        for key, sites in found.items()
    ]


def _reading(
    adapter: Adapter,
    program: Program,
    target: Dialect | None,
    groups: list[_Alike],
    scaled: frozenset[Site],
) -> Reading | None:
    info = adapter.info
    if not adapter.deltas or info.account.unknown:
        return None
    naming = info.detection.naming
    family = "" if naming is None or info.stems else naming.name
    lone = not info.configs if target is None else not target.folder
    unread, otherwise = set[Site](), dict[str, set[Site]]()
    refusing: dict[str, int] = {}
    barred, told = set[Site](), False
    for group in groups:
        form, spelled, sites, names = group
        if not spelled or not all(program.has_seen(family, d, form, names) for d in spelled):
            return None
        if lone and any(DIALECTS[name].folder for name in spelled):
            return None  # a lone file in the words of folders
        told = told or any(program.tells(family, d, form, names) for d in spelled)
        if form in program.refuses:
            refusing[form] = refusing.get(form, 0) + len(sites)
            continue
        bad = set[str]().union(*(program.refused(family, d, form, names) for d in spelled))
        barred |= {site for site in sites if not bad.isdisjoint(site.modules)} if bad else set()
        missed = set[str]().union(*(program.unread(family, d, form, names) for d in spelled))
        left = {s for s in sites if not missed.isdisjoint(s.modules)} if missed else set()
        unread |= left
        for name in spelled if not scaled.isdisjoint(sites) else ():
            if DIALECTS[name].alpha == "tensor":
                continue
            made = program.makes_of_alphas(family, name, form)
            if made == "unseen":
                return None
            if made == "refused":
                refusing[_ALPHAS] = len(scaled)
            elif made == "left out":
                otherwise.setdefault(_NO_ALPHAS, set()).update(scaled.intersection(sites) - left)
        for what in {program.computes(family, name, form) for name in spelled} - {None}:
            otherwise.setdefault(str(what), set()).update(set(sites) - left)
    if not told:
        return None
    different = {what: _in_order(adapter, those) for what, those in otherwise.items() if those}
    if target is None and program.one_alpha and naming is not None and naming.one_alpha:
        differing = _other_alphas(adapter, program)
        if differing:
            different[_ONE_ALPHA] = tuple(differing)
    reasons = [f"{form} ({count} of them)" for form, count in refusing.items()]
    if barred:
        reasons.append(
            f"modules that it does not know: {listed(list(_in_order(adapter, barred)), 3)}"
        )
    refused = ", ".join(reasons)
    left_out = _in_order(adapter, unread)
    if not refused and program.most_unread is not None:
        refused = _too_many(adapter, left_out, program.most_unread)
    return Reading(program, left_out, different, refused)


def _in_order(adapter: Adapter, sites: set[Site]) -> tuple[str, ...]:
    return tuple(site.name for site in adapter.deltas if site in sites) if sites else ()


def _stating_alphas(adapter: Adapter) -> frozenset[Site]:
    """Return the sites whose file states an alpha that says more than the rank."""
    return frozenset(
        site
        for site, delta in adapter.deltas.items()
        if (core := delta.core) is not None
        and (dim := core.dim) is not None
        and delta.alpha != dim
        and (site, "alpha") in adapter.info.spelling
    )


def _other_alphas(adapter: Adapter, program: Program) -> list[str]:
    """Return the modules for whose alpha a program takes that of others, in the file's own dialect.

    What loramerge writes itself has one alpha for such programs.
    """
    values = {
        site: delta.rank if delta.alpha is None else delta.alpha
        for site, delta in adapter.deltas.items()
    }
    if len(set(values.values())) < 2:
        return []
    alphas: dict[str, dict[float, list[str]]] = {}
    dialects = frozenset(program.one_alpha)
    for site, value in values.items():
        if value is not None and adapter.info.spelled.get(site, frozenset()) <= dialects:
            alphas.setdefault(site.component, {}).setdefault(value, []).append(site.name)
    return [
        name
        for found in alphas.values()
        for value in sorted(found, key=lambda value: len(found[value]))[:-1]
        for name in found[value]
    ]


def _too_many(adapter: Adapter, unread: Sequence[str], most: int) -> str:
    """Return the reason why a program that places too few tensors refuses a file."""
    by_name = {site.name: delta for site, delta in adapter.deltas.items()}
    tensors = sum(
        len(by_name[name].stored()) + (by_name[name].alpha is not None) for name in unread
    )
    return f"{tensors} tensors that it cannot place" if tensors > most else ""


def form_of(adapter: Adapter, site: Site, delta: Delta) -> str:
    """Return the form of a delta, as programs distinguish forms.

    They read differences of vectors along with the weight's, or for themselves.
    """
    if site.parameter == "weight":
        if delta.form != "norm":
            return delta.form
        return "norm" if site._replace(parameter="bias") in adapter.deltas else "norm without bias"
    beside = adapter.deltas.get(site._replace(parameter="weight"))
    if beside is None:
        return "lone bias"
    if beside.form == "norm":
        return "norm"
    return "bias" if beside.facts.whole else "bias beside factors"

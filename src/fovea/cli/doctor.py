"""`fovea doctor`: what this machine has, and whether Fovea works on it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from fovea.cli.options import Parser, UsageError
from fovea.core.log import show_logs

if TYPE_CHECKING:
    from fovea.cli.checks import Check
    from fovea.cli.facts import Facts

DESCRIPTION = """\
Report the environment and test the installation: packages, the embedded model's files,
the kernels against float64 arithmetic, and one question about a bundled picture.
Exit code 1 if a check fails. Nothing leaves this machine."""
EXAMPLES = ("fovea doctor", "fovea doctor --json > report.json")


NO_ENVIRONMENT: Mapping[str, str] = MappingProxyType({})


def main(argv: Sequence[str], environment: Mapping[str, str] = NO_ENVIRONMENT) -> int:
    parser = Parser("doctor", description=DESCRIPTION, examples=EXAMPLES)
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead of tables.")
    options, words = parser.parse(argv)
    if words:
        raise UsageError(f"fovea doctor takes no words, {words[0]!r} was given.")
    show_logs(logging.ERROR)
    return _report_json(environment) if options.json else _report_tables(environment)


def _report_json(environment: Mapping[str, str]) -> int:
    from fovea.cli.checks import run_checks
    from fovea.cli.facts import collect_facts

    facts, checks = collect_facts(environment), list(run_checks())
    listed = [{"name": check.name, "status": check.status, "detail": check.detail} for check in checks]
    print(json.dumps({"ok": not _failed(checks), "checks": listed, "facts": facts}, indent=2))
    return int(_failed(checks))


def _report_tables(environment: Mapping[str, str]) -> int:
    from fovea.cli.checks import run_checks
    from fovea.cli.facts import collect_facts

    print(facts_table(collect_facts(environment)), flush=True)
    checks = []
    for check in run_checks():
        checks.append(check)
        print(f"{check.status:<4}  {check.name:<15} {check.detail}", flush=True)
    warned = sum(check.status == "warn" for check in checks)
    if _failed(checks):
        print("\nFovea does not work here as it should; see the lines that begin with fail.")
    else:
        print("\nFovea works here." + (" See the lines that begin with warn." if warned else ""))
    return int(_failed(checks))


def facts_table(facts: Facts) -> str:
    width = max(len(name) for section in facts.values() for name in section)
    lines = []
    for title, section in facts.items():
        lines.append(title)
        lines += [f"  {name:<{width}}  {value}" for name, value in section.items()]
        lines.append("")
    return "\n".join(lines)


def _failed(checks: Sequence[Check]) -> bool:
    return any(check.status == "fail" for check in checks)

"""The command: runs mutations of some kinds, or of all, and prints what came of them."""

import argparse
import pathlib
import sys
import time

from fuzz import campaign, inputs


def main() -> int:
  """Returns 1 if a fault was found."""
  parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
  parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(inputs.KINDS))
  parser.add_argument("--count", type=int, default=20_000, help="of each kind")
  parser.add_argument("--first", type=int, default=0, help="the first one's number")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--only", type=int, help="repeat one, and show what comes of it")
  parser.add_argument("--minutes", type=float, help="of each kind, at most")
  parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.here:
    jobs = dict(word.split("=") for word in options.kinds)
    cases = {name: range(*map(int, part.split(":"))) for name, part in jobs.items()}
    campaign.here(cases, inputs.KINDS, options.seed)
    return 0
  names = chosen(options.kinds)
  if options.only is not None:
    options.first, options.count = options.only, 1
  faults = 0
  for name in names:
    faults += run(name, options)
  return 1 if faults else 0


def chosen(parts: list[str]) -> list[str]:
  """Returns the kinds of these names, or with these parts in their names; all for none."""
  found = [
    name
    for name in inputs.KINDS
    if not parts
    or name in parts
    or any(p in name and p not in inputs.KINDS for p in parts)
  ]
  if not found:
    sys.exit(f"error: there is no such kind; there are {', '.join(inputs.KINDS)}.")
  return found


def run(name: str, options: argparse.Namespace) -> int:
  """Runs a kind, prints a line of it and a few for each sort of fault; returns how many."""
  began = shown = time.time()

  def progress(_: str, report: campaign.Report) -> None:
    nonlocal shown
    if time.time() - shown > 30:
      shown = time.time()
      rate = report.cases / (shown - began)
      print(
        f"  {name}: {report.cases} of {options.count}, {len(report.faults)} faults, "
        f"{rate:.1f} a second",
        file=sys.stderr,
        flush=True,
      )

  cases = range(options.first, options.first + options.count)
  seconds = options.minutes and 60 * options.minutes
  report = campaign.campaign([name], cases, options.seed, progress, seconds)[name]
  print(
    f"{name}: {report.cases} mutations, {report.refused} refused, {report.passed} passed, "
    f"{len(report.faults)} faults; slowest {report.slowest:.1f} s, most memory "
    f"{report.most_bytes >> 20} MiB; {time.time() - began:.0f} s",
    flush=True,
  )
  for number, faults in enumerate(campaign.sorts(report.faults).values()):
    first = faults[0]
    print(f"  {len(faults)} times, such as [{first['done']}]")
    long = options.only is not None
    text = (
      first["fault"] if long else "\n".join(first["fault"].splitlines()[-3:])[-500:]
    )
    print("    " + text.replace("\n", "\n    "))
    print(f"    {campaign.command(name, first['case'], options.seed)}", flush=True)
    if number > 40:
      break
  if report.faults:
    print(f"  files: {pathlib.Path(campaign.keep_folder())}/")
  return len(report.faults)


if __name__ == "__main__":
  sys.exit(main())

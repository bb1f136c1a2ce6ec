"""`gchat plan`'s memory estimates against the TPU compiler's own peaks.

The committed table (`gchat/scaling/calibration.json`) holds rows that the estimate was fitted to
and rows that only check it, each compiled for a real TPU topology with no TPU present. Printed
are the rows that check. `--quick` compares with the table, compiles its cheapest checking row
again and fails if the compiler's figure moved by more than 1%. Without `--quick` every checking
row is compiled again (minutes each). Without libtpu nothing is compiled and `recompiled` is null.

The limit is 10% on every checking row. Memory is laid out in the first tenth of a
compilation; the code that follows is not generated.
"""

import argparse
import importlib.util
import sys

import harness

LIMIT = 0.10
MOVED = 0.01


def main(args: argparse.Namespace) -> dict:
    """Compares, and compiles again what was asked for."""
    from gchat.scaling.calibrate import config_of, estimate_of
    from gchat.scaling.calibration import factors, read_rows
    from gchat.scaling.sku import parse_fleet
    from gchat.scaling.verify import compile_step

    rows, _ = read_rows()
    checking = [row for row in rows if row.role == "check" and row.peak_bytes]
    cheapest = min(checking, key=lambda row: row.compile_seconds or 0.0)
    again = [cheapest] if args.quick else checking
    moved: dict[str, float] | None = None
    if importlib.util.find_spec("libtpu"):
        moved = {}
        for row in again:
            found = compile_step(config_of(row), parse_fleet(row.sku), memory_only=True)
            moved[row.name] = round(found.peak_bytes / (row.peak_bytes or 1) - 1, 5)
    shown = []
    for row in checking:
        estimated, peak = estimate_of(row, factors()), row.peak_bytes or 1
        shown.append(
            {
                "topology": row.sku,
                "shape": row.name,
                "batch": row.rows_per_device,
                "remat": row.remat,
                "estimated_gib": round(estimated / 2**30, 3),
                "compiled_gib": round(peak / 2**30, 3),
                "error": round(estimated / peak - 1, 4),
                "fits": row.fits,
                "compile_s": row.compile_seconds,
            }
        )
        print(
            f"{row.name:28} {row.sku:10} {peak / 2**30:8.3f} GiB compiled, "
            f"{estimated / 2**30:8.3f} estimated, {100 * shown[-1]['error']:+6.1f}%"
        )
    worst = max(abs(row["error"]) for row in shown)
    print(f"{len(shown)} rows, largest error {100 * worst:.1f}% (limit {100 * LIMIT:.0f}%)")
    if moved is None:
        print("libtpu is not installed: nothing was compiled again", file=sys.stderr)
    elif far := {name: share for name, share in moved.items() if abs(share) > MOVED}:
        sys.exit(f"the compiler's figures moved by more than {100 * MOVED:.0f}%: {far}")
    return {"rows": shown, "max_error": worst, "recompiled": moved}


if __name__ == "__main__":
    harness.run(main, __doc__)

"""Evaluate with an upstream (DeMo) configuration: python test_net.py --config_file F [KEY VALUE ...]."""

try:
    from trireid.cli import evaluate_from_upstream
except ModuleNotFoundError as error:
    if error.name != "trireid":
        raise
    raise SystemExit("error: trireid is not installed; run `make install`, then .venv/bin/python test_net.py") from None

if __name__ == "__main__":
    evaluate_from_upstream()

.PHONY: install test lint types docs bench ci clean

install:
	pip install -c constraints.txt -e ".[test]"
	pip install --no-deps recbole==1.2.1

test:
	python -m pytest -n 2 --dist loadfile

lint:
	ruff check .
	ruff format --check .

types:
	mypy

# The generated pages: docs/settings.md and docs/choices.md
docs:
	python -m recbole_ilrec.reference_pages docs

# CPU time and memory of training steps, search and trie; BENCH=--quick for the small sizes only
bench:
	python -m benchmarks $(BENCH)

ci:
	bash .ci/run

# What builds and tools leave behind; datasets, checkpoints and logs of runs stay.
clean:
	rm -rf build dist *.egg-info .venv-ci .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find recbole_ilrec tests -name __pycache__ -type d -prune -exec rm -rf {} +

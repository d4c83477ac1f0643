"""Parquet: the columns that have the names of the JSONL fields."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from domainkit.data.faults import Faults
from domainkit.data.row import KEYS, Row
from domainkit.types import UserError


def rows(file: Path, faults: Faults) -> Iterator[Row]:
    """The known columns, in batches. Raises UserError if pyarrow is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            "Parquet files need pyarrow, which is not installed",
            where=file,
            instead="pip install 'domainkit[parquet]'",
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if "text" not in names:
                faults.add(f"no column 'text', found {names[:8]}", file, "name the column of texts 'text'")
                return
            columns = [name for name in names if name in KEYS]
            number = 0
            for batch in table.iter_batches(batch_size=256, columns=columns):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(number, fields)
    except pyarrow.ArrowInvalid as error:
        what = f"not a whole Parquet file ({error})" if file.stat().st_size else "the file is empty"
        faults.add(what, file, "write it again as Parquet, or give it its true suffix")

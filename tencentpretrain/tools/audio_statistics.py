"""Means and deviations of the bands of a corpus: what `scripts/audio_statistics.py` does."""

from __future__ import annotations

import logging
from collections import Counter

from tencentpretrain.config import Config, PathLike
from tencentpretrain.data.corpora import CorpusConfig, FieldsConfig
from tencentpretrain.data.media.audio import decode_audio
from tencentpretrain.data.media.filter_banks import FilterBank, FilterBankConfig, Moments
from tencentpretrain.data.media.records import find_media, read_entry
from tencentpretrain.errors import before_start, named
from tencentpretrain.tools.outputs import check_file, published
from tencentpretrain.train.durable import write_bytes

log = logging.getLogger("tencentpretrain")


class AudioStatisticsConfig(Config):
    """Compute the statistics that sounds are normalised with over a corpus."""

    path: str | list[str]
    """Lists, folders or tar files of the sounds to train on, or several of them."""
    path_column: str = "path"
    """Column or key of a list that holds the path of a sound."""
    bank: FilterBankConfig = FilterBankConfig(normalise="none")
    """How sounds become frames."""
    output: PathLike
    """File for the statistics, to be given as bank.statistics with bank.normalise=global."""
    overwrite: bool = False
    """Whether output may replace a file that is there."""


def run_audio_statistics(config: AudioStatisticsConfig) -> int:
    """Compute statistics as `config` says; returns the exit code."""
    with before_start():
        check_file(config.output, config.overwrite)
        fields = FieldsConfig(path=config.path_column)
        corpus = CorpusConfig(path=config.path, format="audio", fields=fields)
        entries = list(find_media(corpus, Counter()))
    bank, moments = FilterBank(config.bank), Moments(config.bank.bands)
    for entry in entries:
        data = read_entry(entry)
        with named(entry.where):
            moments.add(bank.raw(decode_audio(data, config.bank.rate)))
    with published(config.output) as partial:
        write_bytes(partial, moments.content())
    log.info(f"{moments.count:,} frames of {len(entries):,} sounds; see {config.output}")
    return 0

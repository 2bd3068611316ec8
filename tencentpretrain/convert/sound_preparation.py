"""How sounds become frames, as `transformers` keeps it beside a model: Kaldi's and Whisper's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tencentpretrain.convert.family import Plain
from tencentpretrain.convert.keys import Settings
from tencentpretrain.data.media.filter_banks import STEP, WINDOW
from tencentpretrain.errors import CheckpointError


def bank_to_ours(settings: Settings) -> Plain:
    settings.expect({"dither": 0.0, "padding_value": 0.0, "padding_side": "right"})
    is_normalised = settings.get("do_ceptral_normalize", True)
    return {
        "bank": {
            "kind": "kaldi",
            "rate": settings.number("sampling_rate", 16000),
            "bands": settings.number("num_mel_bins", 80),
            "normalise": "utterance" if is_normalised else "none",
            "means": settings.get("normalize_means", True),
            "variances": settings.get("normalize_vars", True),
        }
    }


def bank_to_theirs(objective: Mapping[str, Any]) -> Plain:
    bank = _bank(objective, "kaldi")
    if bank.get("normalise") == "global":
        raise CheckpointError("their sounds cannot be normalised by statistics of a corpus")
    return {
        "feature_extractor_type": "Speech2TextFeatureExtractor",
        "feature_size": bank.get("bands", 80),
        "num_mel_bins": bank.get("bands", 80),
        "sampling_rate": bank.get("rate", 16000),
        "do_ceptral_normalize": bank.get("normalise", "utterance") == "utterance",
        "normalize_means": bank.get("means", True),
        "normalize_vars": bank.get("variances", True),
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
    }


def _bank(objective: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    bank: Mapping[str, Any] = objective.get("bank") or {}
    if bank.get("kind", kind) != kind:
        raise CheckpointError(f"their models read filter banks of the kind {kind}, not of another")
    return bank


def log_mel_to_ours(settings: Settings) -> Plain:
    rate = settings.number("sampling_rate", 16000)
    settings.expect(
        {
            "dither": 0.0,
            "padding_value": 0.0,
            "padding_side": "right",
            "n_fft": round(rate * WINDOW),
            "hop_length": round(rate * STEP),
            "do_normalize": False,
        }
    )
    seconds = settings.get("chunk_length", 30)
    bands = settings.number("feature_size", 80)
    return {
        "bank": {
            "kind": "whisper",
            "rate": rate,
            "bands": bands,
            "normalise": "none",
            "seconds": seconds,
        }
    }


def log_mel_to_theirs(objective: Mapping[str, Any]) -> Plain:
    bank = _bank(objective, "whisper")
    rate, seconds = bank.get("rate", 16000), bank.get("seconds") or 30
    if bank.get("normalise", "none") != "none" or seconds != int(seconds):
        raise CheckpointError("their sounds are whole seconds long and not normalised")
    step = round(rate * STEP)
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": bank.get("bands", 80),
        "sampling_rate": rate,
        "chunk_length": int(seconds),
        "n_fft": round(rate * WINDOW),
        "hop_length": step,
        "n_samples": rate * int(seconds),
        "nb_max_frames": rate * int(seconds) // step,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }

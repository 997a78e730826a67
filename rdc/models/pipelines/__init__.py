"""Pipelines of the diffusers library as classifiers: transformers and U-Nets, with labels or prompts, in pixels or latents."""

from rdc.models.pipelines.load import load_pipeline

__all__ = ["load_pipeline"]

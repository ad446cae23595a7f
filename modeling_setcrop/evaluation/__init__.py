"""Measure a model beside baselines and the annotators' agreement, by the same code on the same images."""

from __future__ import annotations

from .labels import Labels, Predictions
from .measures import Estimate, estimate, measure
from .predict import predict

__all__ = ["Estimate", "Labels", "Predictions", "estimate", "measure", "predict"]

"""Measure a model beside baselines and the annotators' agreement, by the same code on the same images."""

from __future__ import annotations

from modeling_setcrop.evaluation.labels import Labels, Predictions
from modeling_setcrop.evaluation.measures import Estimate, estimate, measure
from modeling_setcrop.evaluation.predict import predict

__all__ = ["Estimate", "Labels", "Predictions", "estimate", "measure", "predict"]

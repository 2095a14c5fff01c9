"""Projects of others, as they are installed: how each is made, trained, saved and loaded.

A project is a class with the interface of `project.Project`; its package is imported when it is
made. Data are made, or come with Python and the packages.
"""

from __future__ import annotations

from importlib import import_module

from projects.project import Project, Watch, sow

__all__ = ["NAMES", "Project", "Watch", "find", "sow"]

WHERE = {
    "lightning_demo": ["LightningLSTM"],
    "of_pytorch_forecasting": [
        "DeepAR-LSTM",
        "DeepAR-GRU",
        "RecurrentNetwork-LSTM",
        "RecurrentNetwork-GRU",
        "TemporalFusionTransformer",
    ],
    "of_neuralforecast": ["NeuralForecast-LSTM", "NeuralForecast-GRU", "NeuralForecast-RNN"],
    "of_darts": ["Darts-RNNModel-RNN", "Darts-RNNModel-LSTM", "Darts-BlockRNNModel-GRU"],
    "of_gluonts": ["GluonTS-DeepAR"],
    "of_flair": ["Flair-tagger-LSTM", "Flair-tagger-GRU", "Flair-tagger-RNN"],
    "of_stanza": ["Stanza-charlm"],
    "of_allosaurus": ["Allosaurus"],
}
NAMES = [name for names in WHERE.values() for name in names]


def find(name: str) -> type[Project]:
    """The class of a project; ImportError where its package is missing."""
    module = next(module for module, names in WHERE.items() if name in names)
    return import_module(f"projects.{module}").PROJECTS[name]

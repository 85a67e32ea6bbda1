"""dpoflow: Direct Preference Optimization as a Kubeflow pipeline, tracked in MLflow.

Nouns hold what the steps share (contracts, sources, policy, judge, state, tracking, registry);
verbs are the steps (snapshot, validate, synthesize, train, evaluate, register), one folder each.
"""

__version__ = "0.1.0"

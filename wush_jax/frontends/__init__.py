"""Front ends: kinds of models, and how their linear layers are found, observed and run."""

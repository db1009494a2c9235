"""How `fovea-tiny`, the embedded model, is made: data, training, export, evaluation. See README.md."""

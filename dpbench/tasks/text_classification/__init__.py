"""Classification of texts and of pairs of texts, by a full encoder or by an MLP on its frozen features."""

"""Layers split into thinner ones: what each may become, which splits are chosen, whether they are faster."""

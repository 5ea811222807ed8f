"""Datasets: name -> source -> examples."""

"""Make an ``.npz`` in MedMNIST's schema from a folder or a table of images.

``request`` holds the settings, ``listing`` lists the files, ``decode`` makes images of equal size, ``duplicates`` and
``splitting`` decide which belong together and in which split, ``archive`` writes, and ``build`` runs these steps.
"""

"""From a folder or a table of images to an ``.npz`` in MedMNIST's schema.

``listing`` says which files there are, ``decode`` decodes them to equal sizes, ``duplicates`` and ``splitting`` decide
which go together and where, ``archive`` writes, and ``build`` is the order of these steps.
"""

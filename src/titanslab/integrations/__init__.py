"""The models as classes of other libraries: each file is imported by name, and needs the library that it is for."""

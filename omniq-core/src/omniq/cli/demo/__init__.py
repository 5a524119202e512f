"""``omniq demo``: real work on real input, two workers, one of them killed, and a check that nothing was lost.

``measuring`` is the work itself, ``tasks`` declares it to OmniQ as any application would, ``team`` starts and kills the
worker processes, ``watching`` reads from the store how it goes, ``display`` shows it, ``runner`` is the plot.
"""

"""Watching a broker: what it says of itself, and the federation beside it, folded into one picture.

Pure, time being an argument:

    figures      Mosquitto's `$SYS` topics as numbers
    log_lines    Mosquitto's log, line by line: who was dropped, refused, thrown out
    presence     what the federation's own retained messages tell, where no coordinator answers
    picture      the one picture, as plain data
    watch        what it is folded from
    metrics      a picture as Prometheus reads it
    limits       what the broker was configured to bear

In the world:

    reader       one connection to the broker that feeds a picture, and the latency probe
    process      how much memory the broker takes
    certificates how long the site's certificates last, and who was revoked
    view         a picture on a terminal
    http         a picture and its metrics over HTTP
"""

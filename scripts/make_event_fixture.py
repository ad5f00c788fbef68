#!/usr/bin/env python3
"""Writes an event file with TensorBoard's own writer, for the test of crates/experiments/src/export/tensorboard.rs, and
reads event files back.

Usage: python3 scripts/make_event_fixture.py crates/experiments/src/export/events.out.tfevents.fixture
       python3 scripts/make_event_fixture.py --read FILE
Needs tensorboard.
"""

import sys

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

START = 1.7e9
LINES = [
    (1, 0.25, [("loss/train", 4.5), ("optimizer/learning_rate", 0.001)]),
    (300, 9.5, [("loss/validation", 2.25)]),
]


def write(path):
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=START, file_version="brain.Event:2").SerializeToString())
        for step, elapsed, values in LINES:
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values])
            writer.write(Event(wall_time=START + elapsed, step=step, summary=summary).SerializeToString())


def read(path):
    for event in LegacyEventFileLoader(path).Load():
        for value in event.summary.value:
            print(event.step, value.tag, value.simple_value)


if sys.argv[1] == "--read":
    read(sys.argv[2])
else:
    write(sys.argv[1])

"""Image files in, stored vectors out. torch and transformers live here.

A run goes through these lines from top to bottom.

    the job   index.py is the whole of it, in this process; run.py tells new from known, whoever encodes; report.py
              counts, progress.py tells machines, quarantine.py remembers what cannot be read
    listing   folders.py lists what it is given: tree.py by a table.py or by the names that labels.py reads,
              archive.py with a zip's directory.py, cloud.py, named.py; each image is an entry.py, seen.py lets none
              come twice
    stages    pipeline.py lists, decodes, encodes and writes at the same time, a channel.py from each stage.py to the
              next
    decoding  reader.py reads some images at a time, by image.py, or large ones by what offload.py has proved:
              nvimagecodec.py
    encoding  encoder.py has preprocess.py make the input, staging.py upload it, and runs tower.py, backbone.py or
              depth.py, on a CPU as packed.py or openvino.py (int8.py) make it faster; words.py does the same for text
    loading   load.py makes an encoder of the name that encoder_name.py reads; hub.py brings its files, checkpoint.py
              opens them
    several   crew.py drives a run that others encode: processes.py here, ray.py elsewhere; each worker.py takes a
              unit.py and seals shards that incoming.py takes into the store
    besides   ask.py embeds what someone asks about, column.py a second vector of what is stored
    to try    sample.py simulates a data set, standin.py builds a small encoder
"""

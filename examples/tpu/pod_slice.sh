#!/bin/bash
# Trains on a slice of 32 TPU v5e chips (8 hosts) without Kubernetes:
#
#   bash examples/tpu/pod_slice.sh create      # the slice, then what all hosts need
#   bash examples/tpu/pod_slice.sh train       # starts or continues the run on all hosts
#   bash examples/tpu/pod_slice.sh log         # follows the output of the first host
#   bash examples/tpu/pod_slice.sh stop        # saves a checkpoint and stops
#   bash examples/tpu/pod_slice.sh delete
#
# If the slice is taken away, `create` and `train` continue the run.
# Needs gcloud, and an image built with --build-arg JAX="jax[tpu]" in Artifact Registry. Change these lines:
set -euo pipefail
project=PROJECT
zone=europe-west4-b
name=vg500
accelerator=v5litepod-32
version=v2-alpha-tpuv5-lite
image=europe-west4-docker.pkg.dev/PROJECT/aia/aia:tpu
bucket=gs://BUCKET
account=aia@PROJECT.iam.gserviceaccount.com   # may read and write the bucket, and read the image

tpu() {  # tpu VERB ...: a gcloud command for the slice
  local verb=$1
  shift
  gcloud compute tpus tpu-vm "$verb" "$name" --project="$project" --zone="$zone" "$@"
}

train=(
  aia train --config vg500:large --workdir "$bucket/runs/vg500"
  --config.data.root="$bucket/datasets" --config.data.placement=stream --distributed=auto
)
# The TPU devices belong to root. Each host has its own cache.
container="sudo docker run --detach --name aia --net=host --privileged --user 0 --volume /var/tmp/aia:/cache $image"

case ${1-} in
  create)
    tpu create --accelerator-type="$accelerator" --version="$version" --spot \
      --service-account="$account" --scopes=cloud-platform
    tpu ssh --worker=all --command="sudo gcloud auth configure-docker ${image%%/*} --quiet && sudo docker pull $image"
    ;;
  train)
    tpu ssh --worker=all --command="sudo docker rm aia 2>/dev/null; $container ${train[*]:1}"
    ;;
  log) tpu ssh --worker=0 --command="sudo docker logs --follow aia" ;;
  stop) tpu ssh --worker=all --command="sudo docker stop -t 300 aia" ;;
  delete) tpu delete --quiet ;;
  *)
    echo "usage: $0 create|train|log|stop|delete" >&2
    exit 2
    ;;
esac

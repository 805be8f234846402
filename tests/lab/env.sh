# shellcheck shell=bash
# To be sourced by the project's scripts, with $repo the repository: finds cargo where tests/lab/setup, rustup or Debian put it.
# shellcheck disable=SC2154  # the sourcing script sets repo
export PATH=$PATH:${HOME:-/root}/.cargo/bin:$repo/target/lab/rust/usr/bin:/usr/sbin:/sbin

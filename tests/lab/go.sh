# shellcheck shell=bash
# To be sourced with $repo the repository: the Go by which the conformance tests build Longhorn.
# shellcheck disable=SC2154  # the sourcing script sets repo

# What Longhorn wants, such as 1.26.0.
go_minimum=$(sed -n 's/^go //p' "$repo/tests/conformance/longhorn/go.mod")

# The go of the PATH, if it is new enough, or the one that tests/lab/setup --go unpacked.
find_go() {
	local go version
	for go in "$(command -v go)" "$repo/target/lab/go/bin/go"; do
		[ -x "$go" ] || continue
		version=$(cd / && GOTOOLCHAIN=local "$go" env GOVERSION 2>/dev/null) || continue
		# go1.26.8, or go1.26.8-X:somewhat
		version=${version#go}
		if printf '%s\n' "$go_minimum" "${version%%[-+ ]*}" | sort -V -C; then
			echo "$go"
			return
		fi
	done
	return 1
}

# shellcheck shell=bash
# Part of tests/lab/setup --go: Go, where the machine has none new enough.
#
# That of trixie-backports, unpacked under target/lab/go and not installed. It needs nothing of Debian 13's, for its programs are linked statically.
# shellcheck disable=SC2154  # setup and go.sh set lab, codename and go_minimum

install_go() {
	find_go >/dev/null && return
	case $codename in
		bookworm | trixie) unpack_go ;;
		*) apt_install golang-go ;;
	esac
	find_go >/dev/null || die "there is still no Go >= $go_minimum; install one"
}

unpack_go() {
	local release=${go_minimum%.*} go=$lab/go
	apt_update
	add_suite trixie-backports || die "no Go >= $go_minimum, and no trixie-backports to take it from; install one"
	say "no Go >= $go_minimum found: unpacking that of trixie-backports in target/lab/go (not installing it)"
	rm -rf "$go" "$go.new"
	mkdir -p "$go.new"
	(cd "$go.new" && apt-get download -qq -o APT::Sandbox::User=root "golang-$release-go/trixie-backports" "golang-$release-src/trixie-backports") ||
		die "cannot download Go from trixie-backports"
	for package in "$go.new/"*.deb; do dpkg-deb -x "$package" "$go.new"; done
	rm "$go.new/"*.deb
	ln -s "usr/lib/go-$release/bin" "$go.new/bin"
	mv "$go.new" "$go"
}

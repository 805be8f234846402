# shellcheck shell=bash
# Part of tests/lab/setup: Rust, where the machine has no cargo new enough.
#
# The packages of trixie-backports, unpacked under target/lab/rust and not installed: installing them on a Debian 12 would replace its C library,
# OpenSSL and base-files by Debian 13's. The programs are told to use the loader and the libraries unpacked beside them; what they build is linked
# against the machine's own C library. tests/lab/env.sh puts them on the PATH.
# shellcheck disable=SC2154  # setup sets lab and codename

cargo_minimum=1.87
rust_packages=(cargo rustc rust-clippy rustfmt)
rust=$lab/rust

cargo_version_ok() {
	local cargo version
	cargo=$(command -v cargo) || return 1
	version=$("$cargo" --version 2>/dev/null | awk '{ print $2 }') || return 1
	[ "$(printf '%s\n' "$cargo_minimum" "${version%%-*}" | sort -V | head -n 1)" = "$cargo_minimum" ]
}

install_rust() {
	cargo_version_ok && return
	case $codename in
		bookworm) unpack_rust ;;
		trixie)
			apt_update
			add_suite trixie-backports || die "no cargo >= $cargo_minimum, and no trixie-backports to take it from; install Rust by rustup"
			apt_install -t trixie-backports "${rust_packages[@]}"
			;;
		*) apt_install "${rust_packages[@]}" ;;
	esac
	cargo_version_ok || die "there is still no cargo >= $cargo_minimum; install Rust by rustup"
}

unpack_rust() {
	local wanted
	apt_update
	{ add_suite trixie && add_suite trixie-backports; } ||
		die "no cargo >= $cargo_minimum, and no trixie-backports to take it from; install Rust by rustup"
	say "no cargo >= $cargo_minimum found: unpacking that of trixie-backports in target/lab/rust (not installing it)"
	installed patchelf || apt_install patchelf
	# What apt would install, less what belongs to the system: the toolchain itself, and the libraries it loads, those of trixie. Of a package
	# to upgrade, the version in brackets is the installed one and that in parentheses the new one.
	wanted=$(apt-get install -s --no-install-recommends -t trixie "${rust_packages[@]/%//trixie-backports}" |
		awk '$1 == "Inst" && ($2 ~ /^(cargo|rustc|rust-clippy|rustfmt|libstd-rust.*)$/ || ($2 ~ /^lib/ && $2 !~ /-(dev|bin|modules.*)$/)) {
			if (match($0, /\([^ ]+/)) print $2 "=" substr($0, RSTART + 1, RLENGTH - 1)
		}')
	[ -n "$wanted" ] || die "apt finds no way to install ${rust_packages[*]} from trixie-backports"
	rm -rf "$rust" "$rust.new"
	mkdir -p "$rust.new/download"
	# shellcheck disable=SC2086  # one word per package
	(cd "$rust.new/download" && apt-get download -qq -o APT::Sandbox::User=root $wanted) || die "cannot download Rust from trixie-backports"
	for package in "$rust.new/download/"*.deb; do dpkg-deb -x "$package" "$rust.new"; done
	rm -rf "$rust.new/download" "$rust.new/etc" "$rust.new/usr/share" "$rust.new/usr/lib/x86_64-linux-gnu/gconv"
	mv "$rust.new" "$rust.unfinished"
	point_at_own_libraries "$rust.unfinished" "$rust"
	mv "$rust.unfinished" "$rust"
}

# point_at_own_libraries WHERE FINALLY: programs and libraries in WHERE look for libraries in FINALLY, where they will be.
point_at_own_libraries() {
	local file loader=usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 libraries=$2/usr/lib/x86_64-linux-gnu
	for file in "$1"/usr/bin/*; do
		[ -L "$file" ] || patchelf --set-interpreter "$2/$loader" --force-rpath --set-rpath "$libraries" "$file"
	done
	# A library with a search path of its own would not look where the program says.
	find "$1/usr/lib" -name '*.so*' -type f | while read -r file; do
		if [ -n "$(patchelf --print-rpath "$file" 2>/dev/null)" ]; then patchelf --force-rpath --set-rpath "$libraries" "$file"; fi
	done
}

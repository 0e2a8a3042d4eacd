package main

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// iptablesNames are the commands of iptables that are one program in Debian.
var iptablesNames = []string{
	"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore",
	"iptables-nft", "iptables-nft-save", "iptables-nft-restore", "ip6tables-nft", "ip6tables-nft-save", "ip6tables-nft-restore",
}

// netTools lays out nft and iptables (the nftables kind) with the libraries
// they load and those packages' copyright files. The layout is a merged /usr,
// whichever way the distribution's packages have it.
func netTools(ctx context.Context, d debian) (rootfs, []pkg, error) {
	packages, err := d.unpack(ctx, true, "nftables", "iptables")
	if err != nil {
		return nil, nil, err
	}
	t := toolTree{packages: packages, out: rootfs{}, used: map[string]bool{}}
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		t.out.symlink(dir, "usr/"+dir)
	}
	for _, tool := range []string{"usr/sbin/nft", "usr/sbin/xtables-nft-multi"} {
		if err := t.program(tool); err != nil {
			return nil, nil, fmt.Errorf("lay %s into the node image: %w", tool, err)
		}
	}
	for _, name := range iptablesNames {
		t.out.symlink("usr/sbin/"+name, "xtables-nft-multi")
	}
	if err := t.extensions(); err != nil {
		return nil, nil, fmt.Errorf("lay iptables' extensions into the node image: %w", err)
	}
	if file, p, ok := t.find("etc/protocols"); ok {
		t.take("etc/protocols", file, p, 0o644)
	}
	// iptables keeps its lock here; the DaemonSet may mount over it.
	t.out.folder("run", 0o755)
	t.copyrights()
	return t.out, packages, nil
}

// toolTree collects files from unpacked packages.
type toolTree struct {
	packages []pkg
	out      rootfs
	used     map[string]bool // packages that gave a file
}

// merged is where a path of a package lies when /bin, /sbin and /lib are in /usr.
func merged(name string) string {
	for _, dir := range []string{"bin/", "sbin/", "lib/", "lib64/"} {
		if strings.HasPrefix(name, dir) {
			return "usr/" + name
		}
	}
	return name
}

// find looks a path up in all packages, in both layouts, and follows links to
// a regular file; links may lead from one package's tree into another's.
func (t *toolTree) find(name string) (string, pkg, bool) {
	name = merged(name)
	for range 8 {
		file, p, link := t.look(name)
		switch {
		case file == "":
			return "", pkg{}, false
		case link == "":
			return file, p, true
		case strings.HasPrefix(link, "/"):
			name = merged(path.Clean(link)[1:])
		default:
			name = merged(path.Join(path.Dir(name), link))
		}
	}
	return "", pkg{}, false
}

func (t *toolTree) look(name string) (file string, owner pkg, link string) {
	for _, p := range t.packages {
		for _, layout := range []string{name, strings.TrimPrefix(name, "usr/")} {
			file := filepath.Join(p.Root, layout)
			info, err := os.Lstat(file)
			if err != nil {
				continue
			}
			if info.Mode()&os.ModeSymlink != 0 {
				if link, err := os.Readlink(file); err == nil {
					return file, p, link
				}
			}
			if info.Mode().IsRegular() {
				return file, p, ""
			}
		}
	}
	return "", pkg{}, ""
}

func (t *toolTree) take(name, file string, p pkg, mode int64) {
	t.out.file(merged(name), file, mode)
	t.used[p.Name] = true
}

// program takes an executable or library and, in turn, what its ELF headers ask for.
func (t *toolTree) program(name string) error {
	name = merged(name)
	if _, done := t.out[name]; done {
		return nil
	}
	file, p, ok := t.find(name)
	if !ok {
		return errors.New("no package holds " + name)
	}
	t.take(name, file, p, 0o755)
	return t.needs(file)
}

// needs takes the interpreter and the libraries of an ELF file.
func (t *toolTree) needs(file string) error {
	binary, err := elf.Open(file)
	if err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	defer binary.Close()
	for _, program := range binary.Progs {
		if program.Type != elf.PT_INTERP {
			continue
		}
		interpreter := make([]byte, program.Filesz)
		if _, err := program.ReadAt(interpreter, 0); err != nil {
			return fmt.Errorf("read interpreter of %s: %w", file, err)
		}
		if err := t.program(strings.Trim(string(interpreter), "/\x00")); err != nil {
			return err
		}
	}
	libraries, err := binary.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("read libraries of %s: %w", file, err)
	}
	for _, library := range libraries {
		dir, ok := t.libraryFolder(library, binary.Machine)
		if !ok {
			return fmt.Errorf("%s needs %s, which no package holds", file, library)
		}
		if err := t.program(dir + "/" + library); err != nil {
			return err
		}
	}
	return nil
}

// multiarch are the folders of Debian's libraries.
var multiarch = map[elf.Machine]string{elf.EM_X86_64: "usr/lib/x86_64-linux-gnu", elf.EM_AARCH64: "usr/lib/aarch64-linux-gnu"}

func (t *toolTree) libraryFolder(library string, machine elf.Machine) (string, bool) {
	for _, dir := range []string{multiarch[machine], "usr/lib", "usr/lib64"} {
		if _, _, ok := t.find(dir + "/" + library); dir != "" && ok {
			return dir, true
		}
	}
	return "", false
}

// extensions takes iptables' matches and targets, which it loads by name.
func (t *toolTree) extensions() error {
	count := 0
	for _, p := range t.packages {
		found, err := filepath.Glob(filepath.Join(p.Root, "usr/lib/*/xtables/*.so"))
		if err != nil {
			return err
		}
		for _, file := range found {
			name, err := filepath.Rel(p.Root, file)
			if err != nil {
				return err
			}
			if err := t.program(name); err != nil {
				return err
			}
			count++
		}
	}
	if count == 0 {
		return errors.New("the packages hold none")
	}
	return nil
}

func (t *toolTree) copyrights() {
	for _, p := range t.packages {
		name := "usr/share/doc/" + p.Name + "/copyright"
		if file, _, ok := t.find(name); ok && t.used[p.Name] {
			t.out.file(name, file, 0o644)
		}
	}
}

// certificates is Mozilla's bundle as Debian ships it, as one PEM file.
func certificates(ctx context.Context, d debian) (rootfs, []pkg, error) {
	packages, err := d.unpack(ctx, false, "ca-certificates")
	if err != nil {
		return nil, nil, err
	}
	root := packages[0].Root
	files, err := filepath.Glob(filepath.Join(root, "usr/share/ca-certificates/mozilla/*.crt"))
	if err != nil || len(files) == 0 {
		return nil, nil, fmt.Errorf("the package ca-certificates %s holds no certificate", packages[0].Version)
	}
	var bundle strings.Builder
	for _, file := range files { // Glob sorts
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, nil, fmt.Errorf("read certificate: %w", err)
		}
		bundle.WriteString(strings.TrimSpace(string(content)) + "\n")
	}
	out := rootfs{}
	out.text("etc/ssl/certs/ca-certificates.crt", bundle.String())
	copyright := "usr/share/doc/ca-certificates/copyright"
	out.file(copyright, filepath.Join(root, copyright), 0o644)
	return out, packages, nil
}

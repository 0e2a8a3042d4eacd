package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// node is one file of an image: exactly one of source, link and content says
// what it is; none of them means a folder.
type node struct {
	source  string // path on this machine
	link    string // target of a symbolic link
	content []byte
	mode    int64
}

// rootfs is the content of one layer by absolute path, without the slash at
// the start. It becomes the same bytes on every machine.
type rootfs map[string]node

func (r rootfs) file(name, source string, mode int64) { r[name] = node{source: source, mode: mode} }
func (r rootfs) symlink(name, target string)          { r[name] = node{link: target, mode: 0o777} }
func (r rootfs) text(name, content string) {
	r[name] = node{content: []byte(content), mode: 0o644}
}
func (r rootfs) folder(name string, mode int64) { r[name] = node{mode: mode} }

// complete adds the folders that the files imply.
func (r rootfs) complete() {
	for name := range maps.Clone(r) {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, ok := r[dir]; !ok {
				r.folder(dir, 0o755)
			}
		}
	}
}

// tarball writes the layer: sorted, owned by root, one time for all.
func (r rootfs) tarball(created time.Time) ([]byte, error) {
	for name := range r {
		if path.IsAbs(name) || path.Clean(name) != name || name == ".." || strings.HasPrefix(name, "../") {
			return nil, fmt.Errorf("the layer's path %q is not relative and clean", name)
		}
	}
	r.complete()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range slices.Sorted(maps.Keys(r)) {
		if err := r[name].write(w, name, created); err != nil {
			return nil, fmt.Errorf("write %s to layer: %w", name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("end layer: %w", err)
	}
	return out.Bytes(), nil
}

func (n node) write(w *tar.Writer, name string, created time.Time) error {
	header := &tar.Header{Name: name, Mode: n.mode, ModTime: created, Format: tar.FormatUSTAR}
	switch {
	case n.link != "":
		header.Typeflag, header.Linkname = tar.TypeSymlink, n.link
		return w.WriteHeader(header)
	case n.source != "":
		file, err := os.Open(n.source)
		if err != nil {
			return err
		}
		defer file.Close()
		info, err := file.Stat()
		if err != nil {
			return err
		}
		header.Typeflag, header.Size = tar.TypeReg, info.Size()
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		_, err = io.Copy(w, file)
		return err
	case n.content != nil:
		header.Typeflag, header.Size = tar.TypeReg, int64(len(n.content))
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		_, err := w.Write(n.content)
		return err
	default:
		header.Typeflag, header.Name = tar.TypeDir, name+"/"
		return w.WriteHeader(header)
	}
}

package main

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// named is an image with the full name that it has in archives.
type named struct {
	name  string
	image v1.Image
}

// writeArchive writes images as an OCI layout in a tar file, with the
// manifest.json that Docker and kind look for as well. containerd takes each
// image's name from an annotation in the index.
func writeArchive(path string, images []named, created time.Time) error {
	partial, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("create archive: %w", err)
	}
	defer os.Remove(partial.Name())
	defer partial.Close()
	archive := archiveWriter{tar: tar.NewWriter(partial), created: created, done: map[v1.Hash]bool{}}
	if err := archive.write(images); err != nil {
		return fmt.Errorf("write archive %s: %w", path, err)
	}
	if err := partial.Chmod(0o644); err != nil {
		return fmt.Errorf("write archive %s: %w", path, err)
	}
	if err := partial.Close(); err != nil {
		return fmt.Errorf("write archive %s: %w", path, err)
	}
	return os.Rename(partial.Name(), path)
}

type archiveWriter struct {
	tar     *tar.Writer
	created time.Time
	done    map[v1.Hash]bool // blobs written: images share layers
}

// dockerImage is an entry of manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (a *archiveWriter) write(images []named) error {
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	var docker []dockerImage
	if err := a.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	for _, n := range images {
		entry, err := a.blobs(n)
		if err != nil {
			return fmt.Errorf("image %s: %w", n.name, err)
		}
		docker = append(docker, entry)
		raw, err := n.image.RawManifest()
		if err != nil {
			return err
		}
		digest, err := n.image.Digest()
		if err != nil {
			return err
		}
		file, err := n.image.ConfigFile()
		if err != nil {
			return err
		}
		index.Manifests = append(index.Manifests, v1.Descriptor{
			MediaType: types.OCIManifestSchema1,
			Size:      int64(len(raw)),
			Digest:    digest,
			Platform:  &v1.Platform{OS: file.OS, Architecture: file.Architecture},
			Annotations: map[string]string{
				"io.containerd.image.name":          n.name,
				"org.opencontainers.image.ref.name": n.name,
			},
		})
	}
	for _, file := range []struct {
		name    string
		content any
	}{{"index.json", index}, {"manifest.json", docker}} {
		raw, err := json.Marshal(file.content)
		if err != nil {
			return err
		}
		if err := a.file(file.name, raw); err != nil {
			return err
		}
	}
	return a.tar.Close()
}

// blobs writes an image's manifest, configuration and layers.
func (a *archiveWriter) blobs(n named) (dockerImage, error) {
	entry := dockerImage{RepoTags: []string{n.name}}
	manifest, err := n.image.RawManifest()
	if err != nil {
		return entry, err
	}
	config, err := n.image.RawConfigFile()
	if err != nil {
		return entry, err
	}
	configHash, err := n.image.ConfigName()
	if err != nil {
		return entry, err
	}
	digest, err := n.image.Digest()
	if err != nil {
		return entry, err
	}
	entry.Config = blobPath(configHash)
	if err := a.file(blobPath(digest), manifest); err != nil {
		return entry, err
	}
	if !a.done[configHash] {
		a.done[configHash] = true
		if err := a.file(blobPath(configHash), config); err != nil {
			return entry, err
		}
	}
	layers, err := n.image.Layers()
	if err != nil {
		return entry, err
	}
	for _, layer := range layers {
		hash, err := layer.Digest()
		if err != nil {
			return entry, err
		}
		entry.Layers = append(entry.Layers, blobPath(hash))
		if a.done[hash] {
			continue
		}
		a.done[hash] = true
		size, err := layer.Size()
		if err != nil {
			return entry, err
		}
		content, err := layer.Compressed()
		if err != nil {
			return entry, err
		}
		err = a.copy(blobPath(hash), size, content)
		content.Close()
		if err != nil {
			return entry, err
		}
	}
	return entry, nil
}

func blobPath(hash v1.Hash) string { return "blobs/" + hash.Algorithm + "/" + hash.Hex }

func (a *archiveWriter) header(name string, size int64) error {
	return a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: a.created, Format: tar.FormatUSTAR})
}

func (a *archiveWriter) file(name string, content []byte) error {
	if err := a.header(name, int64(len(content))); err != nil {
		return err
	}
	_, err := a.tar.Write(content)
	return err
}

func (a *archiveWriter) copy(name string, size int64, content io.Reader) error {
	if err := a.header(name, size); err != nil {
		return err
	}
	_, err := io.Copy(a.tar, content)
	return err
}

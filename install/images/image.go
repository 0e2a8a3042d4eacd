package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// release is what all images of one run say about themselves.
type release struct {
	version  string
	revision string // "" where the build does not know its commit
	created  time.Time
	arch     string
}

const sourceURL = "https://github.com/hauberk-mesh/hauberk"

func (r release) labels(s spec) map[string]string {
	labels := map[string]string{
		"org.opencontainers.image.title":       s.Title,
		"org.opencontainers.image.description": s.Description,
		"org.opencontainers.image.version":     r.version,
		"org.opencontainers.image.licenses":    "Apache-2.0",
		"org.opencontainers.image.source":      sourceURL,
		"org.opencontainers.image.created":     r.created.UTC().Format(time.RFC3339),
	}
	if r.revision != "" {
		labels["org.opencontainers.image.revision"] = r.revision
	}
	return labels
}

// users is the part of a system that programs expect to find: who they are,
// and a place for temporary files.
func users() rootfs {
	out := rootfs{}
	out.text("etc/passwd", "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\nhauberk-proxy:x:15015:15015:hauberk-proxy:/:/sbin/nologin\n")
	out.text("etc/group", "root:x:0:\nnonroot:x:65532:\nhauberk-proxy:x:15015:\n")
	out.text("etc/nsswitch.conf", "hosts: files dns\n")
	out.folder("tmp", 0o1777)
	return out
}

// programs is the layer of an image's own binaries: /usr/bin/NAME.
func programs(s spec, paths map[string]string) rootfs {
	out := rootfs{}
	for _, b := range s.Binaries {
		out.file("usr/bin/"+b.Name, paths[b.Name], 0o755)
	}
	return out
}

// layer compresses a root file system. Layers are kept in memory: the largest
// is the size of one binary.
func (r release) layer(content rootfs) (v1.Layer, error) {
	raw, err := content.tarball(r.created)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(
		func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil },
		tarball.WithCompressionLevel(gzip.BestSpeed),
		tarball.WithCompressedCaching,
		tarball.WithMediaType(types.OCILayer),
	)
	if err != nil {
		return nil, fmt.Errorf("compress layer: %w", err)
	}
	return layer, nil
}

// part is a layer with the words that the image's history says of it.
type part struct {
	layer v1.Layer
	what  string
}

// image assembles an image from the empty one.
func (r release) image(s spec, parts []part) (v1.Image, error) {
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	var additions []mutate.Addendum
	for _, p := range parts {
		additions = append(additions, mutate.Addendum{
			Layer:     p.layer,
			MediaType: types.OCILayer,
			History:   v1.History{Created: v1.Time{Time: r.created}, CreatedBy: "hauberk install/images", Comment: p.what},
		})
	}
	image, err := mutate.Append(image, additions...)
	if err != nil {
		return nil, fmt.Errorf("append layers: %w", err)
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read image configuration: %w", err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Created = "linux", r.arch, v1.Time{Time: r.created}
	file.Config = v1.Config{
		User:       s.User,
		Entrypoint: []string{"/usr/bin/" + s.Binaries[0].Name},
		Env: []string{
			"PATH=/usr/sbin:/usr/bin",
			"SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt",
		},
		WorkingDir: "/",
		Labels:     r.labels(s),
	}
	if image, err = mutate.ConfigFile(image, file); err != nil {
		return nil, fmt.Errorf("set image configuration: %w", err)
	}
	annotated, ok := mutate.Annotations(image, r.labels(s)).(v1.Image)
	if !ok {
		return nil, fmt.Errorf("annotate image %s: the result is no image", s.Name)
	}
	return annotated, nil
}

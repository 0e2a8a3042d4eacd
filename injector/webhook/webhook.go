// Package webhook answers the API server's admission reviews of pods.
//
// It owns the protocol: decoding, limits, refusals as responses, metrics, and
// TLS serving. What is done to a pod is injector/patch's, the certificates are
// injector/certs'. Whatever arrives, the handler answers with a review or an
// HTTP error and never ends the process. An HTTP error is a failed call, which
// the webhook's failurePolicy Ignore passes on to the admission policy, and
// that refuses a pod without sidecar.
package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hauberk-mesh/hauberk/injector/patch"
)

// Path is where reviews are sent.
const Path = "/inject"

// maxBody is above what the API server accepts for one object (3 MiB), which a
// review wraps once.
const maxBody = 8 << 20

// Handler answers reviews. All fields are required.
type Handler struct {
	// Config gives the sidecar's configuration, or why there is none yet.
	Config func() (patch.Config, error)
	// Namespace gives a namespace's labels.
	Namespace func(ctx context.Context, name string) (patch.NamespaceFacts, error)
	Metrics   *Metrics
	Log       *slog.Logger
}

// ServeHTTP implements http.Handler for Path.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	begin := time.Now()
	result := resultError
	defer func() {
		if p := recover(); p != nil {
			// One odd pod must not take the injector from all others.
			h.Log.Error("admission review panicked", "panic", fmt.Sprint(p))
			http.Error(w, "internal error", http.StatusInternalServerError)
			result = resultError
		}
		h.Metrics.observe(result, time.Since(begin))
	}()

	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "use POST", http.StatusMethodNotAllowed)
		return
	}
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		http.Error(w, "Content-Type must be application/json", http.StatusUnsupportedMediaType)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		code := http.StatusBadRequest
		if tooBig := (*http.MaxBytesError)(nil); errors.As(err, &tooBig) {
			code = http.StatusRequestEntityTooLarge
		}
		http.Error(w, "read review: "+err.Error(), code)
		return
	}
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(body, &review); err != nil {
		http.Error(w, "decode review: "+err.Error(), http.StatusBadRequest)
		return
	}
	if review.Kind != "AdmissionReview" || review.APIVersion != admissionv1.SchemeGroupVersion.String() || review.Request == nil || review.Request.UID == "" {
		http.Error(w, "not an admission.k8s.io/v1 AdmissionReview with a request", http.StatusBadRequest)
		return
	}

	response, res, err := h.review(r.Context(), review.Request)
	if err != nil {
		h.Log.Warn("admission review failed", "namespace", review.Request.Namespace, "error", err)
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	response.UID = review.Request.UID
	answer := admissionv1.AdmissionReview{TypeMeta: review.TypeMeta, Response: response}
	encoded, err := json.Marshal(answer)
	if err != nil {
		http.Error(w, "encode review: "+err.Error(), http.StatusInternalServerError)
		return
	}
	result = res
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(encoded) // a peer that is gone is not ours to report
}

// review decides about one request. An error means that it could not.
func (h *Handler) review(ctx context.Context, req *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, string, error) {
	pods := metav1.GroupVersionResource{Version: "v1", Resource: "pods"}
	if req.Resource != pods || req.SubResource != "" || req.Operation != admissionv1.Create {
		return &admissionv1.AdmissionResponse{Allowed: true}, resultSkipped, nil
	}
	cfg, err := h.Config()
	if err != nil {
		return nil, "", err
	}
	ns, err := h.Namespace(ctx, req.Namespace)
	if err != nil {
		return nil, "", fmt.Errorf("look up namespace %s: %w", req.Namespace, err)
	}
	d, p, err := patch.InjectJSON(req.Object.Raw, ns, cfg)
	log := h.Log.With("namespace", req.Namespace, "pod", podName(req))
	if refusal := (*patch.Refusal)(nil); errors.As(err, &refusal) {
		log.Info("pod refused", "where", refusal.Where, "what", refusal.What)
		return &admissionv1.AdmissionResponse{Result: &metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: refusal.Error(),
		}}, resultRefused, nil
	}
	if err != nil {
		// Not a pod at all: the API server does not send such a thing.
		return &admissionv1.AdmissionResponse{Result: &metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusBadRequest, Reason: metav1.StatusReasonBadRequest, Message: "hauberk: " + err.Error(),
		}}, resultRefused, nil
	}
	response := &admissionv1.AdmissionResponse{Allowed: true, Warnings: d.Warnings}
	if p != nil {
		kind := admissionv1.PatchTypeJSONPatch
		response.Patch, response.PatchType = p, &kind
	}
	result := resultSkipped
	if d.Inject {
		result = resultInjected
	}
	log.Info("pod reviewed", "injected", d.Inject, "reason", string(d.Reason))
	return response, result, nil
}

// podName is the name, or what the API server will make one of.
func podName(req *admissionv1.AdmissionRequest) string {
	if req.Name != "" {
		return req.Name
	}
	var pod corev1.Pod
	if json.Unmarshal(req.Object.Raw, &pod) == nil && pod.GenerateName != "" {
		return pod.GenerateName + "*"
	}
	return pod.Name
}

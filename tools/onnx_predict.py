"""What a file of export_onnx.py finds in a picture, without torch: python onnx_predict.py MODEL.onnx PICTURE"""

import json
import sys

import cv2
import numpy as np
import onnxruntime


def predict(session, picture):
    about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    steps, image = about['preprocessing'], cv2.imdecode(np.fromfile(picture, np.uint8), cv2.IMREAD_COLOR)
    height, width = image.shape[:2]
    if steps['resize']:
        size = steps['resize']['width'], steps['resize']['height']
        if steps['resize']['keep_ratio']:  # the largest that fits in, lying or standing
            scale = min(max(size) / max(height, width), min(size) / min(height, width))
            size = int(width * scale + 0.5), int(height * scale + 0.5)
        image = cv2.resize(image, size)
    h, w = image.shape[:2]
    image = image[..., ::-1] if steps['channels'] == 'RGB' else image
    image = (image.astype(np.float32) - np.float32(steps['mean'])) / np.float32(steps['std'])
    padding = (0, -h % steps['pad_divisor']), (0, -w % steps['pad_divisor']), (0, 0)
    image = np.pad(image, padding, constant_values=steps['pad_value']).transpose(2, 0, 1)[None]
    if about['task'] == 'classification':
        scores = session.run(None, {'image': image})[0][0]
        best = (-scores).argsort()[: about['topk']]
        return [(about['classes'][i], scores[i]) for i in best if scores[i] >= (about['score_thr'] or 0)]
    outputs = session.run(None, {'image': image, 'image_size': np.array([[h, w]])})
    objects = zip(outputs[0][0] / np.float32([w / width, h / height] * 2), outputs[1][0], outputs[2][0])
    return [(about['classes'][i], score, *box) for box, score, i in objects if i >= 0 and score >= about['score_thr']]


if __name__ == '__main__':
    for found in predict(onnxruntime.InferenceSession(sys.argv[1]), sys.argv[2]):
        print(*found)

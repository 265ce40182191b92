import sys, time, resource
from pathlib import Path
import tempfile, onnx
from onnx import helper, TensorProto
from coldpress import Context, Model, Target, parts
from coldpress.parts import find
from coldpress.parts.graph_pass import rewrite_in_a_row
d=Path(tempfile.mkdtemp(dir="/tmp/wt/tmp-graphpass"))
src=d/"s"; src.mkdir()
N=12000
ts=[];nodes=[]
off=0
for i in range(4):
    t=TensorProto(name=f"w{i}",data_type=1,dims=[N,N],data_location=1)
    for k,v in (("location","w.data"),("offset",off),("length",N*N*4)): t.external_data.add(key=k,value=str(v))
    off+=N*N*4; ts.append(t)
    nodes.append(helper.make_node("MatMul",["x" if i==0 else f"h{i}",f"w{i}"],[f"h{i+1}" if i<3 else "y"],f"m{i}"))
with open(src/"w.data","wb") as f: f.truncate(off)
g=helper.make_graph(nodes,"g",[helper.make_tensor_value_info("x",1,["batch",N])],[helper.make_tensor_value_info("y",1,["batch",N])],ts)
onnx.save(helper.make_model(g,opset_imports=[helper.make_opsetid("",17)],ir_version=8),str(src/"model.onnx"))
out=d/"o"; out.mkdir()
ps=[find("passes","onnx_opset_conversion")(target_opset=21),find("passes","onnx_peephole_optimizer")(remove_duplicates=False),find("passes","dynamic_to_fixed_shape")(dim_param=("batch",),dim_value=(1,)),find("passes","onnx_float_to_float16")()]
s=time.time()
m,sh=rewrite_in_a_row(ps,Model(src,"onnx","k"),Context(out,Target("gpu","CUDAExecutionProvider",1)))
print([round(x.seconds,1) for x in sh], time.time()-s, "GB in", off/1e9, "out", (out/"model.onnx.data").stat().st_size/1e9)
print([l for l in open("/proc/self/status") if l.startswith(("VmHWM","RssAnon"))])
onnx.checker.check_model(str(out/"model.onnx"))
import shutil; shutil.rmtree(d)
